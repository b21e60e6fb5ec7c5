"""Cross-entropy in stage 1: alone, beside a contrastive loss, and the classifier it leaves."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.command import SHORT, run_inside

from supcon_tf.cli import command_line
from supcon_tf.losses import supcon
from supcon_tf.models import contrastive
from supcon_tf.training import optimizers, steps

if "mode" not in flags.FLAGS:
    command_line.define_flags()

SIDE, BATCH = 8, 6


def create_step(weight=None, *, stop_gradient=False, label_smoothing=0.0):
    keras.utils.set_random_seed(0)
    images = keras.Input([SIDE, SIDE, 3])
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    encoder = keras.Model(images, keras.layers.Dense(5)(x))
    model = contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead([4]))
    head = contrastive.create_linear_head(5, 3)
    term = weight and steps.ClassificationTerm(
        head, weight=weight, stop_gradient=stop_gradient, label_smoothing=label_smoothing
    )
    return steps.ContrastiveStep(
        model=model,
        loss=supcon.SupConLoss(reduction=None),
        optimizer=optimizers.create_optimizer("momentum", 0.5),
        global_batch_size=BATCH,
        classification=term,
    )


def draw_batch():
    images = np.random.default_rng(0).integers(0, 256, [BATCH, 2, SIDE, SIDE, 3])
    return {
        "image": tf.constant(images.astype(np.uint8)),
        "label": tf.constant(np.arange(BATCH, dtype=np.int32) % 3),
    }


def cross_entropy(labels, logits, smoothing):
    """- sum_c target_c log softmax(logits)_c, with the target spread by the smoothing."""
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    return -np.mean(np.sum(targets * log_probabilities, axis=1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_joint_training_adds_the_weighted_cross_entropy_of_view_0(smoothing):
    step, batch = create_step(0.3, label_smoothing=smoothing), draw_batch()
    embeddings = step.model.embed(batch["image"])[:, 0]
    logits = np.asarray(step.linear_head(embeddings), np.float64)
    expected = cross_entropy(batch["label"].numpy(), logits, smoothing)
    metrics = step(batch)
    np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive_loss"], create_step()(batch)["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], metrics["contrastive_loss"] + 0.3 * expected, rtol=1e-5
    )


def test_the_classifier_moves_the_encoder_unless_its_gradient_is_stopped():
    batch, weights = draw_batch(), {}
    for name, step in {
        "alone": create_step(),
        "stopped": create_step(1.0, stop_gradient=True),
        "joint": create_step(1.0),
    }.items():
        before = step.linear_head and step.linear_head.get_weights()
        step(batch)
        weights[name] = step.model.encoder.get_weights()
        if step.linear_head:
            assert np.any(step.linear_head.get_weights()[0] != before[0])
    for alone, stopped, joint in zip(*weights.values(), strict=True):
        np.testing.assert_array_equal(stopped, alone)
        assert np.any(joint != alone)


@pytest.mark.parametrize(
    "arguments",
    [("--loss=cross_entropy", "--num_views=1"), ("--cross_entropy_weight=1",)],
    ids=["cross-entropy", "joint"],
)
def test_without_linear_epochs_the_classifier_of_pretraining_is_evaluated(arguments, tmp_path):
    common = (*SHORT, *arguments, f"--model_dir={tmp_path}", "--nonormalize_embedding")
    run_inside(*common, "--linear_epochs=0", "--mode=pretrain,linear,eval", "--pretrain_epochs=4")
    evaluation = json.loads((tmp_path / "eval/eval.json").read_text())
    assert evaluation["top_1"] > 0.3  # Chance is 0.1: what stage 1 learned is there.
    encoder, head, classifier = (
        keras.models.load_model(tmp_path / name)
        for name in (
            "pretrain/encoder.keras",
            "pretrain/linear_head.keras",
            "linear/classifier.keras",
        )  # fmt: skip
    )
    images = np.random.default_rng(0).uniform(0, 255, [4, *encoder.input_shape[1:]])
    np.testing.assert_allclose(
        classifier.predict(images, verbose=0),
        head.predict(encoder.predict(images, verbose=0), verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
    has_head = (tmp_path / "pretrain/projection_head.keras").exists()
    assert has_head == ("--loss=cross_entropy" not in arguments)


@pytest.mark.parametrize(
    "arguments",
    [("--loss=cross_entropy", "--num_views=1"), ("--cross_entropy_weight=1",)],
    ids=["cross-entropy", "joint"],
)
def test_eval_embed_and_export_take_the_classifier_that_pretraining_left(
    arguments, tmp_path, capsys
):
    common = ("--image_size=8", "--num_images=256", f"--model_dir={tmp_path}")
    train = ("--pretrain_epochs=1", "--pretrain_warmup_epochs=0", "--knn_interval_epochs=0")
    run_inside(*common, *train, *arguments, "--mode=pretrain,eval,embed,export")
    assert "that pretraining trained" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "eval/eval.json").read_text())
    assert evaluation["classifier"] == str(tmp_path / "pretrain/linear_head.keras")
    names = json.loads((tmp_path / "export/class_names.json").read_text())
    assert names == [str(digit) for digit in range(10)]

    encoder, head = (
        keras.models.load_model(tmp_path / "pretrain" / name)
        for name in ("encoder.keras", "linear_head.keras")
    )
    embedded = np.load(tmp_path / "embed/embeddings.npz")
    predictions = np.argmax(head.predict(embedded["embeddings"], verbose=0), axis=1)
    np.testing.assert_array_equal(embedded["predictions"], predictions)
    assert evaluation["top_1"] == np.mean(predictions == embedded["labels"])
    images = np.random.default_rng(0).integers(0, 256, [2, *encoder.input_shape[1:]], np.uint8)
    exported = tf.saved_model.load(str(tmp_path / "export/saved_model"))
    np.testing.assert_allclose(
        exported.signatures["serving_default"](images=tf.constant(images))["logits"],
        head(encoder(images.astype(np.float32))),
        rtol=1e-4,
        atol=1e-5,
    )
    # A later linear stage counts more.
    run_inside(*common, "--mode=linear,eval", "--linear_epochs=1")
    evaluation = json.loads((tmp_path / "eval/eval.json").read_text())
    assert evaluation["classifier"] == str(tmp_path / "linear/classifier.keras")


def test_linear_epochs_train_a_new_classifier_on_the_encoder_of_cross_entropy(tmp_path):
    """The two-stage cross-entropy of the paper's Table 7."""
    common = (*SHORT, "--loss=cross_entropy", "--num_views=1", "--nonormalize_embedding")
    run_inside(*common, f"--model_dir={tmp_path}", "--mode=pretrain,linear", "--linear_epochs=1")
    head = keras.models.load_model(tmp_path / "pretrain/linear_head.keras")
    classifier = keras.models.load_model(tmp_path / "linear/classifier.keras")
    trained = classifier.layers[-1].get_weights()[0]
    assert np.any(trained != head.get_weights()[0])
    lines = (tmp_path / "linear/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 22


def test_flags_of_the_classifier_reach_the_step():
    from supcon_tf.stages import pretrain, trainer

    with flagsaver.flagsaver():
        flags.FLAGS(
            ["supcon_tf", "--cross_entropy_weight=0.4", "--pretrain_label_smoothing=0.1",
             "--stop_gradient_before_classifier"]
        )  # fmt: skip
        schedule = trainer.schedule_from_flags(flags.FLAGS, "pretrain", 100)
        step = pretrain.step_from_flags(flags.FLAGS, 16, 10, schedule, (None, None))
    term = step.classification
    assert (term.weight, term.label_smoothing, term.stop_gradient) == (0.4, 0.1, True)

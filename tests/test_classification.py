"""Cross-entropy in stage 1: alone, beside a contrastive loss, and the classifier it leaves."""

import contextlib
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside

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


KINDS = {
    "cross-entropy": ("--loss=cross_entropy", "--num_views=1"),
    "joint": ("--cross_entropy_weight=1",),
}
SMALL = (
    "--image_size=8", "--num_images=512", "--pretrain_epochs=4", "--pretrain_warmup_epochs=0",
    "--knn_interval_epochs=0", "--augmentation_type=identity", "--linear_warmup_epochs=0",
    "--nonormalize_embedding",
)  # fmt: skip


@pytest.fixture(
    scope="module", params=[pytest.param("cross-entropy", marks=pytest.mark.slow), "joint"]
)
def trained(request, tmp_path_factory):
    """One pretraining with a classifier, then eval, embed and export; and what it printed."""
    model_dir, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    arguments = KINDS[request.param]
    with contextlib.redirect_stdout(said):
        run_inside(
            *SMALL, *arguments, f"--model_dir={model_dir}", "--mode=pretrain,eval,embed,export"
        )
    return model_dir, arguments, said.getvalue()


@pytest.fixture
def copied(trained, tmp_path):
    """The pretraining alone, in a folder that a test may change, and the flags for it."""
    model_dir, arguments, _ = trained
    shutil.copytree(model_dir / "pretrain", tmp_path / "run/pretrain")
    return tmp_path / "run", (*SMALL, *arguments, f"--model_dir={tmp_path / 'run'}")


def load(model_dir, *names):
    return [keras.models.load_model(model_dir / name) for name in names]


def test_eval_embed_and_export_take_the_classifier_that_pretraining_left(trained):
    model_dir, arguments, said = trained
    assert "that pretraining trained" in said
    evaluation = json.loads((model_dir / "eval/eval.json").read_text())
    assert evaluation["classifier"] == str(model_dir / "pretrain/linear_head.keras")
    assert evaluation["top_1"] > 0.3  # Chance is 0.1: what stage 1 learned is there.
    names = json.loads((model_dir / "export/class_names.json").read_text())
    assert names == [str(digit) for digit in range(10)]
    has_head = (model_dir / "pretrain/projection_head.keras").exists()
    assert has_head == ("--loss=cross_entropy" not in arguments)

    encoder, head = load(model_dir, "pretrain/encoder.keras", "pretrain/linear_head.keras")
    embedded = np.load(model_dir / "embed/embeddings.npz")
    predictions = np.argmax(head.predict(embedded["embeddings"], verbose=0), axis=1)
    np.testing.assert_array_equal(embedded["predictions"], predictions)
    assert evaluation["top_1"] == np.mean(predictions == embedded["labels"])
    images = np.random.default_rng(0).integers(0, 256, [2, *encoder.input_shape[1:]], np.uint8)
    exported = tf.saved_model.load(str(model_dir / "export/saved_model"))
    np.testing.assert_allclose(
        exported.signatures["serving_default"](images=tf.constant(images))["logits"],
        head(encoder(images.astype(np.float32))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_without_linear_epochs_the_classifier_of_pretraining_is_evaluated(trained, copied):
    model_dir, flags_of_run = copied
    run_inside(*flags_of_run, "--linear_epochs=0", "--mode=linear,eval")
    evaluation, before = (
        json.loads((folder / "eval/eval.json").read_text()) for folder in (model_dir, trained[0])
    )
    assert evaluation["classifier"] == str(model_dir / "linear/classifier.keras")
    assert evaluation["top_1"] == before["top_1"]
    encoder, head, classifier = load(
        model_dir,
        "pretrain/encoder.keras",
        "pretrain/linear_head.keras",
        "linear/classifier.keras",
    )
    images = np.random.default_rng(0).uniform(0, 255, [4, *encoder.input_shape[1:]])
    np.testing.assert_allclose(
        classifier.predict(images, verbose=0),
        head.predict(encoder.predict(images, verbose=0), verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_linear_epochs_train_a_new_classifier_which_counts_more(copied):
    """With cross-entropy, the two-stage training of the paper's Table 7."""
    model_dir, flags_of_run = copied
    run_inside(
        *flags_of_run, "--mode=linear,eval", "--linear_epochs=1", "--summary_interval_steps=1"
    )
    (head, classifier) = load(model_dir, "pretrain/linear_head.keras", "linear/classifier.keras")
    trained = classifier.layers[-1].get_weights()[0]
    assert np.any(trained != head.get_weights()[0])
    assert len((model_dir / "linear/metrics.jsonl").read_text().splitlines()) == 8
    evaluation = json.loads((model_dir / "eval/eval.json").read_text())
    assert evaluation["classifier"] == str(model_dir / "linear/classifier.keras")


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

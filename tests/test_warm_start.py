"""Weights from another run: copied by name, what is missing is listed, fine-tuning continues."""

import json

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers import torch_files

from supcon_tf import main
from supcon_tf.cli import command_line
from supcon_tf.interop import warm_start
from supcon_tf.models import contrastive
from supcon_tf.stages import run_directory

if "mode" not in flags.FLAGS:
    command_line.define_flags()

SHORT = (
    "--num_images=128", "--pretrain_epochs=1", "--pretrain_warmup_epochs=0", "--linear_epochs=1",
    "--finetune_epochs=8", "--finetune_base_learning_rate=0.05", "--batch_size=16",
    "--image_size=16", "--knn_interval_epochs=0", "--augmentation_type=identity",
)  # fmt: skip


def run(*arguments):
    with flagsaver.flagsaver():
        arguments = [*SHORT, *map(str, arguments)]
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        main.run_stages(flags.FLAGS, arguments)


def create_encoder(**options):
    return contrastive.create_encoder("tiny", image_size=16, **options)


def weights(path):
    return {v.path: v.numpy() for v in keras.models.load_model(path).variables}


def assert_equal(one, other):
    assert one.keys() == other.keys() and one
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A finished run of pretrain and linear."""
    model_dir = tmp_path_factory.mktemp("reference")
    run("--mode=pretrain,linear", f"--model_dir={model_dir}")
    return model_dir


def test_weights_are_copied_by_name_whatever_the_process_built_before(tmp_path):
    keras.utils.set_random_seed(0)
    encoder = create_encoder()
    encoder.save(tmp_path / "encoder.keras")
    other = create_encoder()
    assert not np.array_equal(encoder.get_weights()[0], other.get_weights()[0])
    assert warm_start.copy_weights(str(tmp_path / "encoder.keras"), other) == []
    for one, copied in zip(encoder.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, copied)


def test_missing_weights_are_listed_and_start_afresh_only_when_asked(tmp_path):
    path = str(tmp_path / "encoder.keras")
    create_encoder(first_conv_kernel_size=5).save(path)
    target = create_encoder()
    with pytest.raises(
        ValueError,
        match=r" 1 of .*stem_conv/kernel \(shape \(5, 5.* --ignore_missing_checkpoint_vars",
    ):
        warm_start.copy_weights(path, target)
    before = target.get_layer("stem_conv").get_weights()[0]
    (missing,) = warm_start.copy_weights(path, target, ignore_missing=True)
    assert missing.startswith("stem_conv/kernel")
    np.testing.assert_array_equal(target.get_layer("stem_conv").get_weights()[0], before)


def test_another_architecture_is_refused_even_when_missing_weights_are_ignored(tmp_path):
    inputs = keras.Input([4])
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="none of the weights of tiny"):
        warm_start.copy_weights(
            str(tmp_path / "other.keras"), create_encoder(), ignore_missing=True
        )


def test_a_reference_without_the_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no projection head: expected .*model directory"):
        run_directory.find_part(str(tmp_path), "projection_head")


def test_a_pth_file_gives_an_encoder_and_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="only an encoder"):
        run_directory.find_part("there.pth", "projection_head")
    encoder = contrastive.create_encoder(
        "resnet_v1",
        depth=18,
        image_size=8,
        first_conv_kernel_size=3,
        first_conv_stride=1,
        use_initial_max_pool=False,
    )
    before = [weight.copy() for weight in encoder.get_weights()]
    state = torch_files.torch_state(encoder)
    path = torch_files.write_checkpoint(tmp_path / "there.pth", state)
    for variable in encoder.variables:
        variable.assign(variable + 1)
    assert run_directory.find_part(path, "encoder") == path
    assert warm_start.copy_weights(path, encoder) == []
    stem = encoder.get_layer("stem_conv").get_weights()[0]
    np.testing.assert_array_equal(stem, before[0])
    with pytest.raises(ValueError, match="--pretrain_epochs=0"):
        run("--mode=linear", f"--reference_ckpt={path}", f"--model_dir={tmp_path / 'run'}")


def test_pretraining_starts_from_the_parts_that_are_asked_for(reference, tmp_path):
    # With no step to take, what comes out is what went in.
    asked = ["--mode=pretrain", "--pretrain_epochs=0", f"--reference_ckpt={reference}", "--seed=5"]
    run(*asked, "--warm_start_projection_head", f"--model_dir={tmp_path / 'both'}")
    run(*asked, f"--model_dir={tmp_path / 'encoder'}")
    for name in ("encoder", "projection_head"):
        file = f"pretrain/{name}.keras"
        assert_equal(weights(tmp_path / "both" / file), weights(reference / file))
    file = "pretrain/encoder.keras"
    assert_equal(weights(tmp_path / "encoder" / file), weights(reference / file))
    head = weights(tmp_path / "encoder/pretrain/projection_head.keras")
    other = weights(reference / "pretrain/projection_head.keras")
    assert not any(np.array_equal(head[name], other[name]) for name in head)


def test_a_linear_classifier_on_the_encoder_of_another_run(reference, tmp_path, capsys):
    path = reference / "pretrain/encoder.keras"
    run(
        "--mode=linear", "--linear_epochs=0", f"--reference_ckpt={reference}",
        "--warm_start_classifier", f"--model_dir={tmp_path}",
    )  # fmt: skip
    assert f"features of {path}" in capsys.readouterr().out
    file = "linear/classifier.keras"
    assert_equal(weights(tmp_path / file), weights(reference / file))


def test_finetuning_trains_every_layer_and_is_what_eval_measures(reference, tmp_path):
    run("--mode=finetune,eval", f"--reference_ckpt={reference}", f"--model_dir={tmp_path}")
    before = weights(reference / "pretrain/encoder.keras")
    after = weights(tmp_path / "finetune/encoder.keras")
    assert before.keys() == after.keys()
    assert not any(np.array_equal(before[name], after[name]) for name in before)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "finetune/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < np.log(10)
    result = json.loads((tmp_path / "eval/eval.json").read_text())
    assert result["classifier"] == str(tmp_path / "finetune/classifier.keras")
    assert result["top_1"] > 0.2


def test_without_any_encoder_the_message_names_both_ways(tmp_path):
    with pytest.raises(ValueError, match="--mode=pretrain.* --reference_ckpt"):
        run("--mode=finetune", f"--model_dir={tmp_path}")


def test_warm_start_flags_without_a_reference_are_refused():
    with pytest.raises(flags.Error, match="--warm_start_classifier.*--reference_ckpt"):
        run("--warm_start_classifier")

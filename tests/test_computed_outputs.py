"""Stages of one command share the outputs that they compute, and only where they are the same."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.trained_folder import write_trained

from supcon_tf.data import sources
from supcon_tf.stages import computed_outputs, inputs

SHARED = "The outputs for"


@pytest.fixture
def model_dir(tmp_path):
    return write_trained(tmp_path / "run", with_classifier=False).model_dir


@pytest.fixture
def passes(monkeypatch):
    """The number of images of every pass over a source."""
    create, counts = inputs.eval_batches_from_flags, []

    def counting(flag_values, source, **options):
        counts.append(min(options.get("limit") or source.num_examples, source.num_examples))
        return create(flag_values, source, **options)

    monkeypatch.setattr(inputs, "eval_batches_from_flags", counting)
    return counts


def results(folder):
    arrays = dict(np.load(folder / "embed/embeddings.npz"))
    return json.loads((folder / "eval/eval.json").read_text()), arrays


def assert_close(found, expected):
    """Numbers of nested dicts and lists agree, and everything else is equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"classifier", "classifier_sha256"}:
            assert_close(found[key], expected[key])
    elif isinstance(expected, (list, float)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("limit", [pytest.param("50000", marks=pytest.mark.slow), "100"])
def test_one_command_embeds_once_and_finds_what_three_commands_find(
    model_dir, tmp_path, passes, capsys, limit
):
    more = [f"--eval_train_examples={limit}", "--eval_similarity_examples=100"]
    shutil.copytree(model_dir, tmp_path / "apart")
    for stage in ("linear", "eval", "embed"):
        run_inside(f"--mode={stage}", f"--model_dir={tmp_path / 'apart'}", *more)
    used = min(1437, int(limit))
    assert passes == [1437, 360, 360, used, 360]
    assert SHARED not in capsys.readouterr().out

    passes.clear()
    run_inside("--mode=linear,eval,embed", f"--model_dir={model_dir}", *more)
    assert passes == [1437, 360, 360]
    output = capsys.readouterr().out
    assert f"{SHARED} {used:,} images come from the linear stage." in output
    assert f"{SHARED} 360 images come from the eval stage." in output
    (evaluation, arrays), (expected, expected_arrays) = map(
        results, (model_dir, tmp_path / "apart")
    )
    assert_close(evaluation, expected)
    assert arrays.keys() == expected_arrays.keys()
    for name, array in expected_arrays.items():
        if name == "embeddings":
            np.testing.assert_allclose(arrays[name], array, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.slow
@pytest.mark.parametrize(
    "modes,more,expected",
    [
        # Embeds another split than eval.
        ("linear,embed", ["--embed_split=test"], [1437, 360, 360]),
        # The linear stage used other labels or fewer images than eval.
        ("linear,eval", ["--label_noise_prob=0.5"], [1437, 360, 360, 1437]),
        ("linear,eval", ["--num_images=500"], [500, 360, 360, 1437]),
    ],
)
def test_other_examples_are_computed(model_dir, passes, capsys, modes, more, expected):
    run_inside(f"--mode={modes}", f"--model_dir={model_dir}", *more)
    assert passes == expected
    assert SHARED not in capsys.readouterr().out


@pytest.mark.slow
def test_a_classifier_that_was_trained_again_is_not_the_old_one(model_dir, passes, capsys):
    run_inside("--mode=linear", f"--model_dir={model_dir}")
    passes.clear()
    other = ["--linear_optimizer=momentum", "--linear_epochs=0.1", "--override_flags"]
    run_inside("--mode=eval,linear,embed", f"--model_dir={model_dir}", *other)
    assert passes == [360, 1437, 360, 360]
    assert SHARED not in capsys.readouterr().out


@pytest.mark.slow
def test_a_fine_tuned_encoder_is_not_the_pretrained_one(model_dir, passes, capsys):
    short = ["--finetune_epochs=0.1", "--finetune_warmup_epochs=0"]
    run_inside("--mode=linear,finetune,eval", f"--model_dir={model_dir}", *short)
    assert passes == [1437, 360, 360, 360, 1437]
    assert SHARED not in capsys.readouterr().out


@pytest.mark.slow
def test_large_outputs_are_computed_again(model_dir, passes, monkeypatch):
    monkeypatch.setattr(computed_outputs, "MAX_BYTES", 1437 * 64 * 4)  # Without the labels.
    run_inside("--mode=linear,eval,embed", f"--model_dir={model_dir}")
    assert passes == [1437, 360, 360, 1437]


def test_the_limit_holds_for_all_together(monkeypatch):
    source = sources.load_source("digits", "test")
    labels = np.zeros(360, np.int32)
    monkeypatch.setattr(computed_outputs, "MAX_BYTES", 2 * 360 * (3 + 1) * 4 - 1)
    monkeypatch.setattr(computed_outputs, "_kept", [])
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf"])
        for name in ("first", "second"):
            outputs = {name: np.zeros([360, 3], np.float32)}
            computed_outputs.keep(flags.FLAGS, "eval", source, outputs, labels, encoder="e")
        found, _ = computed_outputs.recall(flags.FLAGS, source, ["first"], encoder="e", limit=9)
        assert found["first"].shape == (9, 3)
        assert computed_outputs.recall(flags.FLAGS, source, ["second"], encoder="e") is None
        assert computed_outputs.recall(flags.FLAGS, source, ["first"], encoder="other") is None


def test_a_new_command_remembers_nothing(model_dir, passes):
    run_inside("--mode=linear", f"--model_dir={model_dir}")
    passes.clear()
    run_inside("--mode=eval", f"--model_dir={model_dir}")
    assert passes == [360, 1437]

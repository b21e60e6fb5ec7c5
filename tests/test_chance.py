"""A run whose accuracy needs no images says so when it ends, by a rule that is stated."""

import numpy as np
import pytest
from helpers.command import run_inside
from helpers.trained_folder import write_trained

from supcon_tf.models import contrastive
from supcon_tf.stages import chance


@pytest.mark.parametrize("counts", [(36, 36, 36), (90, 5, 5), (400, 400)])
def test_guesses_are_at_chance_nearly_always_and_a_little_knowledge_is_not(counts):
    """Over 400 draws: guesses in proportion to the classes, and ones that know a third."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    limit = chance.limit(*chance.of_labels(labels).values())
    guesses = rng.permuted(np.tile(labels, (400, 1)), axis=1)
    assert np.mean((guesses == labels).mean(axis=1) <= limit) > 0.95
    assert max(counts) / len(labels) <= limit  # Always the most frequent class.
    known = np.where(rng.random(guesses.shape) < 0.5, labels, guesses)
    if max(counts) / len(labels) < 0.6:
        assert np.mean((known == labels).mean(axis=1) > limit) > 0.95


def test_a_classifier_that_always_answers_the_same_is_named(tmp_path, capsys):
    run = write_trained(tmp_path)
    _, head = contrastive.split_classifier(run.classifier)
    kernel, bias = head.get_weights()
    head.set_weights([0 * kernel, 0 * bias])
    run.classifier.save(tmp_path / "linear/classifier.keras")
    run_inside("--mode=eval", f"--model_dir={tmp_path}", "--eval_train_examples=0")
    closing = capsys.readouterr().out.split("AT CHANCE LEVEL")[1]
    assert "two standard errors" in closing and "--mode=preview" in closing


@pytest.mark.parametrize("stage,name", [("pretrain", "knn_accuracy"), ("linear", "top_1")])
def test_every_stage_that_measures_is_judged(stage, name):
    labels = {"majority_class_share": 0.1, "num_labels": 400}  # The limit is 0.13.
    assert "AT CHANCE" in "".join(chance.chance_warning({stage: {name: 0.12, **labels}}))
    assert not chance.chance_warning({stage: {name: 0.14, **labels}})
    assert not chance.chance_warning({stage: {}})

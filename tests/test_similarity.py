"""The similarities that a run shows, and when it says that the embeddings collapsed."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import command
from PIL import Image

from supcon_tf.training import similarity


def unit_vectors(batch, num_views, seed=0):
    rows = np.random.default_rng(seed).normal(0.4, 1.0, [batch, num_views, 5])
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def oracle(related, projections):
    """Means of z_i . z_j over all ordered pairs of different rows, as slow loops."""
    z = projections.astype(np.float64)
    rows = [(i, v) for i in range(z.shape[0]) for v in range(z.shape[1])]
    sums = {True: [], False: []}
    for i, v in rows:
        for j, w in rows:
            if (i, v) != (j, w):
                sums[bool(related(i, j))].append(z[i, v] @ z[j, w])
    names = {True: "positive_similarity", False: "negative_similarity"}
    return {names[kind]: np.mean(values) for kind, values in sums.items() if values}


def means(labels, projections):
    sums = similarity.similarity_sums(labels, tf.constant(projections))
    return similarity.mean_similarities({name: float(value) for name, value in sums.items()})


CLASSES = np.array([0, 1, 0, 2, 1, 0, 3, 3], np.int32)
MULTI_HOT = np.eye(4, dtype=bool)[CLASSES] | np.eye(4, dtype=bool)[(CLASSES * 5 + 1) % 4]


@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize("kind", ["classes", "multi-hot", "views", "one class", "all differ"])
def test_similarities_equal_the_loop_over_all_pairs(kind, num_views):
    projections = unit_vectors(8, num_views)
    labels, related = {
        "classes": (CLASSES, lambda i, j: CLASSES[i] == CLASSES[j]),
        "multi-hot": (MULTI_HOT, lambda i, j: (MULTI_HOT[i] & MULTI_HOT[j]).any()),
        "views": (None, lambda i, j: i == j),
        "one class": (np.zeros(8, np.int32), lambda i, j: True),
        "all differ": (np.arange(8), lambda i, j: i == j),
    }[kind]
    expected = oracle(related, projections)
    found = means(labels, projections)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5)


def test_replicas_give_the_similarities_of_the_global_batch(mirrored):
    projections = unit_vectors(8, 2)

    @tf.function(autograph=False)
    def run():
        def on_replica():
            context = tf.distribute.get_replica_context()
            first = 2 * context.replica_id_in_sync_group
            local = [tf.slice(tf.constant(x), [first] + [0] * (x.ndim - 1), [2, *x.shape[1:]])
                     for x in (CLASSES, projections)]  # fmt: skip
            return similarity.similarity_sums(*local)

        per_replica = mirrored.run(on_replica)
        return {
            name: mirrored.reduce("SUM", value, axis=None) for name, value in per_replica.items()
        }

    found = similarity.mean_similarities({name: float(value) for name, value in run().items()})
    expected = means(CLASSES, projections)
    assert found == pytest.approx(expected, abs=1e-5)
    parts = [means(CLASSES[i : i + 2], projections[i : i + 2]) for i in range(0, 8, 2)]
    apart = np.mean([part["negative_similarity"] for part in parts if len(part) == 2])
    assert abs(apart - expected["negative_similarity"]) > 1e-3


def line(similarity=1.0, ratio=1.0, learning_rate=0.1):
    return {
        "positive_similarity": similarity, "negative_similarity": similarity,
        "collapse_ratio": ratio, "learning_rate": learning_rate,
    }  # fmt: skip


def count_warnings(lines):
    watch = similarity.CollapseWatch()
    return sum(watch.look(metrics) is not None for metrics in lines)


def test_collapse_is_said_once_after_several_lines_and_not_during_the_warm_up():
    assert count_warnings([line()] * 20) == 1
    assert count_warnings([line()] * 4) == 0
    assert count_warnings([line(learning_rate=0.01 * step) for step in range(20)]) == 0
    assert count_warnings([line(similarity=0.0)] * 20) == 1  # Embeddings of zeros.
    assert count_warnings([line(similarity=0.98)] * 20) == 0
    assert count_warnings([line(ratio=0.98)] * 20) == 0
    assert count_warnings(([line()] * 4 + [line(similarity=0.9)]) * 4) == 0
    assert count_warnings([{"loss": 1.0, "learning_rate": 0.1}] * 20) == 0


def pretrain(model_dir, *arguments):
    command.run_inside(
        "--mode=pretrain", f"--model_dir={model_dir}", "--image_size=8", "--batch_size=16",
        "--pretrain_warmup_epochs=0", "--knn_interval_epochs=0", "--summary_interval_steps=1",
        *arguments,
    )  # fmt: skip
    return [json.loads(line) for line in (model_dir / "pretrain/metrics.jsonl").open()]


def write_equal_images(root):
    for split in ("train", "test"):
        for name in ("one", "other"):
            (root / split / name).mkdir(parents=True)
            for index in range(16):
                picture = np.full([8, 8, 3], 90, np.uint8)
                Image.fromarray(picture).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.slow  # The lines of a healthy log are judged above.
def test_a_healthy_run_does_not_warn(tmp_path, capsys):
    healthy = pretrain(tmp_path, "--pretrain_epochs=0.5")
    assert "embeddings have collapsed" not in capsys.readouterr().out
    assert healthy[-1]["negative_similarity"] < 0.99


def test_a_collapsed_run_warns(tmp_path, capsys):
    """Images that are all equal leave the encoder no choice but equal embeddings."""
    collapsed = pretrain(
        tmp_path, "--dataset=folder", f"--data_dir={write_equal_images(tmp_path / 'data')}",
        "--augmentation_type=identity", "--crop_area_range=1,1", "--pretrain_epochs=6",
        "--whitening=none",
    )  # fmt: skip
    assert capsys.readouterr().out.count("embeddings have collapsed") == 1
    assert collapsed[-1]["positive_similarity"] == pytest.approx(
        collapsed[-1]["negative_similarity"], abs=1e-4
    )
    assert collapsed[-1]["collapse_ratio"] == pytest.approx(1.0, abs=1e-3)

"""How well each kind of embedding finds wrong labels, with labels replaced at random.

An encoder that SupCon trains on wrong labels pulls these images into the wrong class. This study
measures how much that hides the errors. The errors are the labels that --label_noise_prob changes.
Run it again to resume: each finished cell is a file below results/label_noise/.

.venv/bin/python benchmarks/label_noise.py                              # The digits.
.venv/bin/python benchmarks/label_noise.py --photographs=FOLDER         # One folder per class.
.venv/bin/python benchmarks/label_noise.py --table                      # Only print the table.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "results" / "label_noise"
NOISES, SEEDS = (0.1, 0.3), (0, 1, 2)
METHODS = ("pixels", "simclr", "supcon", "supcon_early", "supcon_folds", "joint")
TITLES = {
    "pixels": "pixels",
    "simclr": "SimCLR (`--nouse_labels`)",
    "supcon": "SupCon",
    "supcon_early": "SupCon, after a third of the steps",
    "supcon_folds": "SupCon, 3 folds",
    "joint": "SupCon and cross-entropy, one view, 240 epochs",
}
SCORES = ("regression", "neighbors", "both")
NUM_FOLDS = 3
NUM_PHOTOGRAPHS = 2_000
# The digits as the command trains them. 64 epochs are 2,000 steps for 2,000 photographs.
EPOCHS = {"digits": 30, "photographs": 64}
# Photographs with a classifier trained along: one view, 7,500 steps.
JOINT = {"cross_entropy_weight": 1.0, "num_views": 1, "pretrain_epochs": 240.0}

sys.path.insert(0, str(ROOT))


def load_data(name, folder, seed):
    """Returns images uint8 [M, S, S, 3] and labels int32 [M] as a source."""
    from PIL import Image

    from supcon_tf.data import sources

    if name == "digits":
        return sources.load_source("digits", "train")
    source = sources.load_source("folder", "train", folder)
    source = sources.first_examples(source, NUM_PHOTOGRAPHS)
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in source.paths])
    return sources.ArraySource(images, source.labels, source.class_names)


def train(source, seed, folder, **options):
    """Trains as the command does, and keeps the checkpoint after a third of the steps.

    Args:
        source: The training examples.
        seed: All random numbers follow from it.
        folder: Where checkpoints go.
        **options: What `Settings.choose` shall not choose.

    Returns:
        A function (images) -> embeddings by the last weights, and one by the early weights.
    """
    import tensorflow as tf

    from supcon_tf import fitting, strategies
    from supcon_tf.evaluation import predictions
    from supcon_tf.training import progress, stage_optimizer

    settings = fitting.Settings.choose(source, seed=seed, **options)
    schedule = stage_optimizer.schedule_of_epochs(
        settings.chosen.pretrain_base_learning_rate,
        batch_size=settings.chosen.batch_size,
        num_examples=source.num_examples,
        epochs=settings.chosen.pretrain_epochs,
        warmup_epochs=settings.warmup_epochs,
    )
    early = max(schedule.total_steps // 3, 1)
    strategy = strategies.create_strategy("one_device")
    with mock.patch.object(fitting, "SAVE_STEPS", early), progress.shown(False):
        encoder = fitting.train_encoder(strategy, source, settings, folder=folder).encoder
    step = fitting.create_step(settings, source, schedule)
    state = os.path.join(folder, "checkpoints", f"step_{early:08d}", "state")
    saved = tf.train.Checkpoint(**step.models).read(state)
    saved.assert_existing_objects_matched().expect_partial()

    def embed_by(model):
        return lambda images: predictions.predict(
            strategy,
            lambda batch: model(batch, training=False),
            fitting.examples_in_order(
                type(source)(images, np.zeros(len(images), np.int32), source.class_names),
                settings.chosen.image_size,
            ),
        )[0]

    return embed_by(encoder), embed_by(step.encoder)


def probabilities_of(embeddings, labels, num_classes, seed):
    """Returns the class probabilities of each kind of score."""
    from supcon_tf.evaluation import label_errors

    regression = label_errors.cross_validated_probabilities(
        embeddings, labels, num_classes, seed=seed
    )
    neighbors = label_errors.neighbor_probabilities(embeddings, labels, num_classes)
    return {"regression": regression, "neighbors": neighbors, "both": (regression + neighbors) / 2}


def probabilities_of_folds(source, seed, folder, **options):
    """As `probabilities_of`; encoder, regression and neighbors never see the fold they judge."""
    from scipy.special import softmax

    from supcon_tf.evaluation import label_errors, linear_fit, retrieval

    num_classes = len(source.class_names)
    folds = label_errors.stratified_folds(source.labels, NUM_FOLDS, seed=seed)
    found = {name: np.zeros([source.num_examples, num_classes]) for name in SCORES}
    for fold in range(NUM_FOLDS):
        own, rest = folds == fold, folds != fold
        part = type(source)(source.images[rest], source.labels[rest], source.class_names)
        embed, _ = train(part, seed, os.path.join(folder, str(fold)), **options)
        embeddings = retrieval.unit_norm(embed(source.images))
        fitted = linear_fit.fit(embeddings[rest], part.labels, num_classes)
        logits = embeddings[own] @ fitted.kernel + fitted.bias
        found["regression"][own] = softmax(logits.astype(np.float64), axis=1)
        indices, similarities = retrieval.nearest(embeddings[own], embeddings[rest], 20)
        one_hot = np.eye(num_classes)[part.labels[indices]]
        found["neighbors"][own] = retrieval.neighbor_vote(similarities, one_hot)
    found["both"] = (found["regression"] + found["neighbors"]) / 2
    return found


def figures_of(probabilities, labels, is_wrong):
    """Average precision, precision at the number of errors, and figures of the listed ones."""
    from sklearn.metrics import average_precision_score

    from supcon_tf.evaluation import label_errors

    found = label_errors.find_label_errors(probabilities, labels)
    first = np.argsort(-found.scores, kind="stable")[: is_wrong.sum()]
    listed = found.is_listed
    return {
        "average_precision": float(average_precision_score(is_wrong, found.scores)),
        "precision_at_errors": float(is_wrong[first].mean()),
        "listed": int(listed.sum()),
        "listed_precision": float(is_wrong[listed].mean()) if listed.any() else None,
        "listed_recall": float(listed[is_wrong].mean()),
        "estimated_error_rate": found.estimated_error_rate,
    }


def cell_path(data, noise, seed, method):
    return RESULTS / data / f"noise_{noise:g}_seed_{seed}_{method}.json"


def measure(data, source, noise, seed, work, kept, methods):
    """Runs the missing cells of one noise and seed."""
    from supcon_tf import SupConLoss
    from supcon_tf.data import sources

    noisy = sources.with_label_noise(source, noise, seed=seed)
    is_wrong = noisy.labels != source.labels
    num_classes = len(source.class_names)
    supcon = {"cross_entropy_weight": 0.0, "pretrain_epochs": float(EPOCHS[data])}

    def write(method, probabilities, seconds):
        path = cell_path(data, noise, seed, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = {
            name: figures_of(values, noisy.labels, is_wrong)
            for name, values in probabilities.items()
        }
        cell = {
            "data": data, "noise": noise, "seed": seed, "method": method,
            "num_examples": source.num_examples, "num_errors": int(is_wrong.sum()),
            "epochs": JOINT["pretrain_epochs"] if method == "joint" else EPOCHS[data],
            "seconds": round(seconds), "scores": scores,
        }  # fmt: skip
        path.write_text(json.dumps(cell, indent=1) + "\n")
        ap = ", ".join(f"{name} {scores[name]['average_precision']:.4f}" for name in SCORES)
        print(f"{data} noise={noise:g} seed={seed} {method}: average precision {ap}", flush=True)

    def is_missing(method):
        return method in methods.split(",") and not cell_path(data, noise, seed, method).exists()

    def of(embeddings):
        return probabilities_of(embeddings, noisy.labels, num_classes, seed)

    started = time.monotonic()
    if is_missing("pixels"):
        pixels = source.images.reshape(source.num_examples, -1) / 255.0
        gray = (source.images == source.images[..., :1]).all()
        write("pixels", of(pixels[:, ::3] if gray else pixels), time.monotonic() - started)
    if is_missing("supcon") or is_missing("supcon_early"):
        started = time.monotonic()
        embed, embed_early = train(noisy, seed, str(work / f"supcon_{noise}_{seed}"), **supcon)
        seconds = time.monotonic() - started
        write("supcon", of(embed(source.images)), seconds)
        write("supcon_early", of(embed_early(source.images)), seconds / 3)
    if is_missing("simclr"):
        started = time.monotonic()
        # Without labels, the encoder does not depend on the noise.
        path = kept / f"{data}_simclr_{seed}.npy"
        if not path.exists():
            folder = str(work / f"simclr_{seed}")
            embed, _ = train(source, seed, folder, loss=SupConLoss(use_labels=False), **supcon)
            np.save(path, embed(source.images))
        write("simclr", of(np.load(path)), time.monotonic() - started)
    if is_missing("supcon_folds"):
        started = time.monotonic()
        folder = str(work / f"folds_{noise}_{seed}")
        found = probabilities_of_folds(noisy, seed, folder, **supcon)
        write("supcon_folds", found, time.monotonic() - started)
    if data == "photographs" and is_missing("joint"):
        started = time.monotonic()
        folder = str(work / f"joint_{noise}_{seed}")
        embed, _ = train(noisy, seed, folder, **JOINT)
        write("joint", of(embed(source.images)), time.monotonic() - started)


def print_table(score="both"):
    """Prints mean and range over the seeds of each finished method."""
    for data in sorted(path.name for path in RESULTS.iterdir() if path.is_dir()):
        print(f"\n{data}, score: {score}\n")
        print("| embedding | noise | average precision | precision at the errors | precision and "
              "recall of the list | seeds |\n|---|---:|---:|---:|---:|---:|")  # fmt: skip
        for noise in NOISES:
            for method in METHODS:
                if method == "joint" and data == "digits":
                    continue
                cells = [cell_path(data, noise, seed, method) for seed in SEEDS]
                cells = [json.loads(path.read_text()) for path in cells if path.exists()]
                if not cells:
                    print(f"| {TITLES[method]} | {noise:.0%} | not run | | | 0 |")
                    continue
                found = [cell["scores"][score] for cell in cells]
                ap, at, precision, recall = (
                    [np.nan if each[name] is None else each[name] for each in found]
                    for name in ("average_precision", "precision_at_errors", "listed_precision",
                                 "listed_recall")
                )  # fmt: skip
                spread = f" ({min(ap):.3f} to {max(ap):.3f})" if len(ap) > 1 else ""
                print(
                    f"| {TITLES[method]} | {noise:.0%} | {np.mean(ap):.3f}{spread} | "
                    f"{np.mean(at):.3f} | {np.mean(precision):.3f} / {np.mean(recall):.3f} | "
                    f"{len(ap)} |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", help="Folder of photographs, one folder per class.")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--noises", default="0.1,0.3")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--work", help="Folder to keep SimCLR embeddings in; else a temporary one.")
    parser.add_argument("--table", action="store_true", help="Only print the table.")
    parser.add_argument("--score", default="both", choices=SCORES)
    options = parser.parse_args()
    if options.table:
        print_table(options.score)
        return
    data = "photographs" if options.photographs else "digits"
    for seed in map(int, options.seeds.split(",")):
        source = load_data(data, options.photographs, seed)
        with tempfile.TemporaryDirectory() as work:
            kept = pathlib.Path(options.work or work)
            for noise in map(float, options.noises.split(",")):
                measure(data, source, noise, seed, pathlib.Path(work), kept, options.methods)
    print_table(options.score)


if __name__ == "__main__":
    main()

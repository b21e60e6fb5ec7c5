"""What each member of the family of supervised contrastive losses is good for, measured.

    .venv/bin/python benchmarks/loss_family.py
    .venv/bin/python benchmarks/loss_family.py --photographs=FOLDER
    .venv/bin/python benchmarks/loss_family.py --table

FOLDER holds train/<class>/ and test/<class>/ of square photographs. Without it the embedded digits
are used. Four experiments, each with seeds 0 to 2:

* coarse_to_fine: pretrain with 5 coarse classes of two classes each, and fit a linear classifier of
  the 10 fine classes to the embeddings of the same images.
* long_tail: the largest class has 100 times the images of the smallest. A linear classifier with
  balanced class weights, and its mean accuracy per class.
* regression (digits only): every digit is rotated by a random angle from -60 to 60 degrees, which
  is the target. Ridge regression on the embeddings, and a twin of the same encoder that was trained
  with the squared error of the target on the same batches.
* geometry: pretrain with the 10 classes and each variant of --loss_variant; cosines within and
  between classes and the effective rank of the test embeddings.

A cell is one training: experiment, method and seed. Its result is one small JSON file in
results/loss_family; a command that is started again computes only the missing cells. --table prints
the tables of what is there, with paired bootstrap intervals over the test images (of the mean over
the seeds). They do not cover the variation between seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "results/loss_family"
SEEDS = (0, 1, 2)
BATCH_SIZE, TEMPERATURE, LEARNING_RATE = 128, 0.1, 1e-3
IMBALANCE = 100
# The method that the others are compared with comes first.
METHODS = {
    "coarse_to_fine": ("supcon", "sincere", "spread", "simclr"),
    "long_tail": ("supcon", "class_balanced", "class_averaged"),
    "regression": ("squared_error", "gaussian", "simclr"),
    "geometry": (
        "supcon", "supcon_in", "simclr", "sincere", "decoupled", "epsilon_supinfonce", "spread",
        "class_averaged",
    ),
}  # fmt: skip


def read_digits():
    """Images uint8 [M, S, S, 3] and labels [M] of the training and the test split."""
    from supcon_tf.data import sources

    splits = [sources.load_source("digits", split) for split in ("train", "test")]
    return [(source.images, source.labels) for source in splits]


def read_photographs(folder, num_train, num_test, image_size):
    """The same of a folder, with as many images of each class."""
    from supcon_tf.data import pipeline, sources

    splits = []
    for split, count in (("train", num_train), ("test", num_test)):
        source = sources.load_source("folder", split, folder)
        source = sources.first_examples(source, min(count, source.num_examples))
        batches = list(pipeline.create_eval_batches(source, batch_size=100, image_size=image_size))
        is_image = np.concatenate([batch["index"] for batch in batches]) >= 0
        images = np.concatenate([batch["image"] for batch in batches])[is_image]
        splits.append((images, np.concatenate([batch["label"] for batch in batches])[is_image]))
    return splits


def with_long_tail(images, labels):
    """Keeps a smaller share of each class than of the one before, down to 1 / IMBALANCE."""
    classes = np.unique(labels)
    largest, kept = np.bincount(labels).min(), []
    for place, label in enumerate(classes):
        count = max(1, round(largest * IMBALANCE ** (-place / (len(classes) - 1))))
        kept.extend(np.flatnonzero(labels == label)[:count])
    return images[np.sort(kept)], labels[np.sort(kept)]


def rotated(images, seed):
    """Images rotated by angles float32 [M] in degrees from -60 to 60."""
    from PIL import Image

    angles = np.random.default_rng(seed).uniform(-60, 60, len(images)).astype(np.float32)
    turned = [
        np.asarray(Image.fromarray(image).rotate(float(angle), Image.Resampling.BILINEAR))
        for image, angle in zip(images, angles, strict=True)
    ]
    return np.stack(turned), angles


def train_encoder(images, labels, method, options):
    """Trains a new encoder; returns it, and the predictor of a squared error or None."""
    import keras
    import tensorflow as tf

    from supcon_tf.augment.policies import create_policy
    from supcon_tf.data import pipeline, sources
    from supcon_tf.losses.options import LOSS_VARIANTS
    from supcon_tf.losses.pair_weights import GaussianWeights
    from supcon_tf.losses.supcon import SupConLoss
    from supcon_tf.models import contrastive

    keras.utils.set_random_seed(options.seed)
    size = images.shape[1]
    batches = pipeline.create_train_batches(
        sources.ArraySource(images, labels, (), "real" if labels.dtype.kind == "f" else "class"),
        # Colors say nothing of gray digits, so their views are crops alone.
        policy=create_policy("simclr" if options.photographs else "identity"),
        batch_size=BATCH_SIZE,
        image_size=size,
        seed=options.seed,
        crop_area_range=(0.5, 1.0),
        horizontal_flip=bool(options.photographs) and labels.dtype.kind != "f",
        class_balanced=method == "class_balanced",
    )
    encoder = contrastive.create_encoder("tiny", image_size=size)
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, options.steps)
    )
    if method == "squared_error":
        model = keras.Sequential([encoder, keras.layers.Dense(1)])
        mean, std = float(labels.mean()), float(labels.std())

        def views(batch):
            targets = (tf.repeat(batch["label"], 2) - mean) / std
            return tf.reshape(batch["image"], [-1, size, size, 3]), targets[:, None]

        model.compile(optimizer=optimizer, loss="mse")
        model.fit(batches.map(views), steps_per_epoch=options.steps, shuffle=False, verbose=0)
        return encoder, lambda images: model.predict(images, verbose=0)[:, 0] * std + mean
    if method == "gaussian":
        loss = SupConLoss(temperature=TEMPERATURE, pair_weights=GaussianWeights(labels.std() / 4))
    else:
        variant = "supcon" if method == "class_balanced" else method
        loss = SupConLoss(temperature=TEMPERATURE, **LOSS_VARIANTS[variant])
    model = contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead([128, 64]))
    model.compile(optimizer=optimizer, loss=loss)
    views = batches.map(lambda batch: (batch["image"], batch["label"]))
    model.fit(views, steps_per_epoch=options.steps, shuffle=False, verbose=0)
    return encoder, None


def measure_cell(experiment, method, data, options):
    """One training and its figures."""
    from supcon_tf.evaluation import geometry, linear_fit

    (images, labels), (test_images, test_labels) = data
    if experiment == "regression":
        images, targets = rotated(images, seed=1)
        test_images, test_targets = rotated(test_images, seed=2)
    elif experiment == "long_tail":
        images, labels = with_long_tail(images, labels)
    shown = {"coarse_to_fine": labels // 2, "regression": None}.get(experiment, labels)
    shown = targets if shown is None else shown.astype(np.int32)
    started = time.perf_counter()
    encoder, predict = train_encoder(images, shown, method, options)
    seconds = time.perf_counter() - started
    train_embeddings = encoder.predict(images, batch_size=256, verbose=0)
    embeddings = encoder.predict(test_images, batch_size=256, verbose=0)
    result = {"train_seconds": round(seconds, 1), "train_images": len(images)}
    if experiment == "regression":
        fitted = linear_fit.fit_ridge(train_embeddings, targets)
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        predicted = (unit @ fitted.kernel + fitted.bias)[:, 0]
        errors = np.abs(predicted - test_targets)
        result["absolute_errors"] = [round(float(error), 3) for error in errors]
        result["r2"] = r2(predicted, test_targets)
        if predict is not None:
            own = predict(test_images)
            result["own_head_mean_absolute_error"] = float(np.abs(own - test_targets).mean())
            result["own_head_r2"] = r2(own, test_targets)
        return result
    fitted = linear_fit.fit(
        train_embeddings, labels, int(labels.max()) + 1, class_balanced=experiment == "long_tail"
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    predicted = np.argmax(unit @ fitted.kernel + fitted.bias, axis=1)
    is_correct = predicted == test_labels
    result["correct"] = "".join("01"[int(each)] for each in is_correct)
    result["accuracy"] = float(is_correct.mean())
    result["mean_per_class_accuracy"] = float(
        np.mean([is_correct[test_labels == label].mean() for label in np.unique(test_labels)])
    )
    figures = geometry.geometry_metrics(embeddings, test_labels)
    names = ("within_class_cosine", "between_class_cosine", "effective_rank")
    return result | {name: figures[name] for name in names}


def r2(predicted, targets):
    return float(1 - np.sum((predicted - targets) ** 2) / np.sum((targets - targets.mean()) ** 2))


def path_of(kind, experiment, method, seed):
    return RESULTS / f"{kind}-{experiment}-{method}-{seed}.json"


def cells(kind):
    """Every cell; all methods of one seed before the next seed."""
    for seed in SEEDS:
        for experiment, methods in METHODS.items():
            if experiment != "regression" or kind == "digits":
                for method in methods:
                    yield experiment, method, seed


def run_cells(options, kind):
    data = None
    for experiment, method, seed in cells(kind):
        path = path_of(kind, experiment, method, seed)
        if path.exists() and json.loads(path.read_text())["steps"] == options.steps:
            continue
        if data is None:
            data = (
                read_photographs(options.photographs, *options.counts, options.image_size)
                if options.photographs
                else read_digits()
            )
        options.seed = seed
        result = measure_cell(experiment, method, data, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps({"steps": options.steps, **result}) + "\n")
        os.replace(temporary, path)
        shown = result.get("accuracy", result.get("r2"))
        print(f"{path.name}: {result['train_seconds']:.0f} s, {shown:.3f}", flush=True)


def read_cells(kind, experiment, method):
    paths = [path_of(kind, experiment, method, seed) for seed in SEEDS]
    return {
        seed: json.loads(path.read_text())
        for seed, path in zip(SEEDS, paths, strict=True)
        if path.exists()
    }


def per_image(experiment, result):
    """A figure of each test image, whose mean is the figure of the cell."""
    if experiment == "regression":
        return np.array(result["absolute_errors"])
    return np.array([float(each) for each in result["correct"]])


def print_tables(kind):
    for experiment, methods in METHODS.items():
        found = {method: read_cells(kind, experiment, method) for method in methods}
        found = {method: results for method, results in found.items() if results}
        if found:
            print(f"\n{kind}, {experiment}\n")
            print_table(experiment, found)


def print_table(experiment, found):
    from supcon_tf.evaluation.intervals import paired_bootstrap

    names = {
        "regression": ("r2", "own_head_mean_absolute_error"),
        "long_tail": ("mean_per_class_accuracy",),
    }.get(experiment, ("within_class_cosine", "between_class_cosine", "effective_rank"))
    measure = "mean absolute error" if experiment == "regression" else "accuracy"
    header = ["method", "seeds", measure, *(name.replace("_", " ") for name in names)]
    first = next(iter(found))
    print_row([*header, f"{measure}: difference to {first} (95% interval)"])
    print_row(["---"] * (len(header) + 1))
    for method, results in found.items():
        values = [per_image(experiment, result) for result in results.values()]
        cells = [method, str(len(results)), f"{np.mean(values):.3f}"]
        for name in names:
            have = [result[name] for result in results.values() if name in result]
            cells.append(f"{np.mean(have):.3f}" if have else "")
        shared = [seed for seed in results if seed in found[first]]
        if method == first or not shared:
            print_row([*cells, ""])
            continue
        means = [
            np.mean([per_image(experiment, each[seed]) for seed in shared], axis=0)
            for each in (found[first], results)
        ]
        change = paired_bootstrap(*means)
        print_row([*cells, f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f})"])


def print_row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--full", action="store_true", help="10,000 and 2,000 photographs")
    parser.add_argument("--image_size", type=int, default=32, help="side of photographs in pixels")
    parser.add_argument("--steps", type=int, help="of each training; by default 150, or 1,200")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    options.counts = (10_000 if options.full else 4_000, 2_000)
    options.steps = options.steps or (1_200 if options.photographs else 150)
    kinds = ["digits", "photographs", "photographs_full"]
    kind = kinds[0] if not options.photographs else kinds[2 if options.full else 1]
    if options.table:
        for name in kinds:
            print_tables(name)
        return
    run_cells(options, kind)
    print_tables(kind)


if __name__ == "__main__":
    main()

"""What may be wrong with the data: labels, duplicates, leaks, outliers and odd images."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli.program import python_program
from supcon_tf.data import exclusion, sources, whole_images
from supcon_tf.data.folder_layout import printable
from supcon_tf.evaluation import (
    data_issues,
    duplicates,
    image_prints,
    label_errors,
    outliers,
    prediction_files,
    predictions,
    retrieval,
)
from supcon_tf.evaluation.data_issues import InspectedImages, Issue
from supcon_tf.stages import inputs, process
from supcon_tf.stages.loaded_run import flags_of_run, has_run
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.training import progress

ISSUES = "issues.csv"
# Below this share of labels that are predicted out of sample, most listed labels can be correct.
RELIABLE_AGREEMENT = 0.8
# Width and height of the images that are compared where there is no encoder.
PIXELS_SIDE = 16
WHAT = {
    "mislabeled": "images whose label is probably wrong",
    "contradiction": "images that another one shows with another label",
    "duplicate": "copies of another image of the same class",
    "leak": "training images that validation or test shows too",
    "outlier": "images far from all others",
    "odd_image": "broken or blank images, or of an unusual size",
    "imbalance": "classes with few images",
}


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes issues.csv and inspect.json; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("inspect: loading the encoder"):
        encoder, encoder_path = _load_encoder(flags)
    with process.open_folder(flags, strategy, "inspect", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        parts = _read_parts(flags)
        folder.begin()
        with progress.waiting("inspect: reading the images"):
            prints = image_prints.print_images(_images_of(parts.values()))
        features = _compared_by(flags, strategy, encoder, parts, prints)
        images = _inspected(parts, features)
        issues, figures = _find_issues(flags, images, prints, has_encoder=encoder is not None)
        issues += _broken(parts)
        pairs = figures.pop("pairs")
        figures |= _leak_figures(RunDirectory.of(flags), images, pairs)
        path = folder.file(ISSUES)
        if folder.is_chief and tf.io.gfile.exists(path):
            issues = data_issues.keep_confirmed(issues, exclusion.read_rows(path))
        issues = data_issues.sort_issues(issues)
        counts = Counter(issue.kind for issue in issues)
        result = {
            "data": flags.dataset,
            "num_images": {split: source.num_examples for split, source in parts.items()},
            "features": "encoder" if encoder is not None else "pixels",
            "encoder": encoder_path,
            "kinds": {kind: {"count": counts[kind]} for kind in data_issues.KINDS},
            "settings": _settings(flags, pairs.min_similarity),
        }
        for kind, more in figures.items():
            result["kinds"][kind] |= more
        folder.artifacts.write_text(ISSUES, data_issues.to_csv(issues))
        folder.artifacts.write_json("inspect.json", result)
        folder.seal()
        if folder.is_chief:
            print(describe_inspection(result, issues, path))
        command = _next_training(flags, path)
        return {**result, "path": path, "issues": issues, "next_command": command}


def _images_of(parts):
    """Yields the images of all sources; an error names the broken files."""
    for source in parts:
        with inputs.naming_broken_images(source):
            yield from whole_images.whole_images(source)


def inspect_run(run_directory: str | os.PathLike, **flags: Any) -> list[Issue]:
    """Looks for what may be wrong with the data of a run, as `--mode=inspect` does.

    It writes `inspect/issues.csv` and `inspect/inspect.json` to the run, and prints a summary.

    >>> issues = supcon_tf.inspect_run("runs/mine")
    >>> [issue.file for issue in issues if issue.kind == "mislabeled"][:10]

    Args:
        run_directory: The `--model_dir` of a run. If it holds no run, `data_dir` or another flag
            must name the data, and the images are compared by their pixels.
        **flags: Flags of `--mode=inspect` that replace those of the run, such as
            `data_dir="other/place"`.

    Returns:
        One `Issue` per row of `issues.csv`, by kind and then by score, the largest first. Its
        attributes are the columns: file, split, kind, score, other_file, evidence, confirmed.

    Raises:
        ValueError: If the data cannot be read, or a flag is unknown.
    """
    path = os.fspath(run_directory)
    names_data = {"dataset", "data_dir", "data_csv"} & set(flags)
    if not names_data and not has_run(path):
        raise ValueError(
            f"There is no run at {path}: expected the --model_dir of a run of the command, or "
            'the images to inspect, such as data_dir="my_images".'
        )
    values = flags_of_run(path)
    values["mode"].parse("inspect")
    for name, value in flags.items():
        if name not in values:
            raise ValueError(f"There is no flag {name}: expected flags of --mode=inspect.")
        values[name].parse(",".join(value) if isinstance(value, (list, tuple)) else value)
        values[name].using_default_value = False
    if "dataset" not in flags and values["dataset"].using_default_value:
        if flags.get("data_csv"):
            values["dataset"].parse("csv")
        elif flags.get("data_dir"):
            values["dataset"].parse("folder")
    return run(values, strategies.create_strategy("one_device"))["issues"]


def _load_encoder(flags):
    """Returns the encoder to compare images with and its path; (None, "") without one.

    The encoder of pretraining is preferred to the fine-tuned one, which has learned more of the
    wrong labels.
    """
    if flags.inspect_features == "pixels":
        return None, ""
    run_of_flags = RunDirectory.of(flags)
    for stage in ("pretrain", "finetune"):
        if run_of_flags.has(stage, "encoder.keras"):
            artifacts = run_of_flags.artifacts(stage)
            return artifacts.load_model("encoder.keras"), artifacts.path("encoder.keras")
    if flags.inspect_features == "encoder":
        raise ValueError(
            f"There is no trained encoder in {run_of_flags.path}: run --mode=pretrain with this "
            "--model_dir first, or compare the images by their pixels with "
            "--inspect_features=pixels."
        )
    print(
        f"inspect: {run_of_flags.path} has no trained encoder, so images are compared by their "
        "pixels. Duplicates and odd images do not depend on it; wrong labels and outliers are "
        "found better after --mode=pretrain with this --model_dir."
    )
    return None, ""


def _read_parts(flags):
    """Returns the split and the examples of each split, training first, without broken files."""
    splits = inputs.complete_splits_from_flags(flags, skips_broken=True)
    train = splits.train
    if flags.label_noise_prob:
        train = sources.with_label_noise(train, flags.label_noise_prob, seed=flags.seed)
    parts = {"train": train, "validation": splits.validation, "test": splits.test}
    return {split: source for split, source in parts.items() if source is not None}


def _compared_by(flags, strategy, encoder, parts, prints):
    """Returns float32 [M, F]: embeddings, or without an encoder the pixels."""
    if encoder is None:
        step = image_prints.THUMBNAIL_PX // PIXELS_SIDE
        pixels = prints.thumbnails.reshape([-1, PIXELS_SIDE, step, PIXELS_SIDE, step, 3])
        pixels = pixels.mean(axis=(2, 4), dtype=np.float32) / 255.0
        is_gray = (prints.thumbnails == prints.thumbnails[..., :1]).all()
        return pixels[..., : 1 if is_gray else 3].reshape(len(prints), -1)
    embeddings = []
    for split, source in parts.items():
        batches = inputs.eval_batches_from_flags(flags, source, image_size=encoder.input_shape[1])
        with (
            inputs.naming_broken_images(source),
            progress.waiting(f"inspect: embedding {source.num_examples:,} {split} images"),
            progress.ImageProgress(
                "inspect", source.num_examples, is_shown=strategies.is_chief(strategy)
            ) as bar,
        ):
            found, _ = predictions.predict(strategy, _applied(encoder), batches, count=bar.update)
            embeddings.append(found)
    return np.concatenate(embeddings)


def _applied(encoder: keras.Model):
    return lambda images: encoder(images, training=False)


def _inspected(parts, features):
    """Returns the images of all splits as arrays; labels only if each image has one class."""
    sizes = [source.num_examples for source in parts.values()]
    has_classes = all(source.label_type == "class" for source in parts.values())
    labels = None
    if has_classes:
        labels = np.concatenate([_class_labels(source) for source in parts.values()])
    else:
        print("inspect: images without exactly one class are not checked for wrong labels.")
    return InspectedImages(
        names=[
            name for split, source in parts.items() for name in exclusion.image_names(source, split)
        ],
        splits=np.repeat(np.array(list(parts)), sizes),
        labels=labels,
        class_names=parts["train"].class_names,
        features=features,
    )


def _class_labels(source):
    if isinstance(source, (sources.ArraySource, sources.FileSource)):
        return source.labels
    return np.array([label for _, label in source.examples(seed=None).as_numpy_iterator()])


def _find_issues(flags, images, prints, *, has_encoder):
    """Returns the issues, and figures per kind; the pairs of duplicates are among the figures."""
    with progress.waiting("inspect: looking for wrong labels"):
        issues, labels = data_issues.find_mislabeled(images, seed=flags.seed)
    mislabeled = {issue.file for issue in issues}
    with progress.waiting("inspect: looking for duplicates"):
        pairs = duplicates.find_duplicates(prints, images.features if has_encoder else None)
    issues += data_issues.find_duplicate_issues(images, pairs)
    is_listed = np.array([name in mislabeled for name in images.names], bool)
    with progress.waiting("inspect: looking for outliers"):
        issues += data_issues.find_outliers(images, is_listed)
    issues += data_issues.find_odd_images(images, prints)
    issues += data_issues.find_imbalance(images)
    return issues, {"mislabeled": {"splits": labels}, "pairs": pairs}


def _broken(parts):
    return [
        Issue(path, split, "odd_image", 1.0, "", f"broken: {reason}")
        for split, source in parts.items()
        for path, reason in getattr(source, "skipped", {}).items()
    ]


def _leak_figures(run_of_flags, images, pairs):
    """Returns for each split how many images leak, and the accuracy with and without them."""
    figures = {}
    for split in ("validation", "test"):
        own = np.flatnonzero(images.splits == split)
        leaked = data_issues.leaked_places(images, pairs, split)
        if not len(leaked):
            continue
        figures[split] = {"num_leaked": len(leaked), "num_images": len(own)}
        is_leaked = np.isin(own, leaked)
        measured = _correct(run_of_flags, images, own, split)
        if measured is not None and not is_leaked.all():
            method, is_correct = measured
            figures[split] |= {
                "accuracy_of": method,
                "accuracy": float(is_correct.mean()),
                "accuracy_without_leaked": float(is_correct[~is_leaked].mean()),
                "accuracy_of_leaked": float(is_correct[is_leaked].mean()),
            }
    return {"leak": {"splits": figures}}


def _correct(run_of_flags, images, own, split):
    """Returns which images are classified correctly, by eval if it was run, else by k-NN."""
    names = [images.names[index] for index in own]
    if split == "test" and run_of_flags.has("eval", "predictions.npz"):
        path = run_of_flags.artifacts("eval").check("predictions.npz")
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        try:
            predicted = prediction_files.from_npz(content)
        except ValueError:  # Numbers, not classes.
            return None
        if predicted.names.dtype.kind == "U":
            correct = dict(zip(predicted.names.tolist(), predicted.is_correct(), strict=True))
            if all(name in correct for name in names):
                return "eval/predictions.npz", np.array([correct[name] for name in names])
        elif len(predicted.names) == len(own):
            return "eval/predictions.npz", np.asarray(predicted.is_correct())
    if images.labels is None:
        return None
    train = np.flatnonzero(images.is_training)
    k = min(label_errors.NUM_NEIGHBORS, len(train))
    indices, similarities = retrieval.nearest(images.features[own], images.features[train], k)
    one_hot = np.eye(len(images.class_names))[images.labels[train][indices]]
    votes = retrieval.neighbor_vote(similarities, one_hot)
    return f"{k} nearest training images", votes.argmax(axis=1) == images.labels[own]


def _settings(flags, min_similarity):
    return {
        "seed": flags.seed,
        "label_errors": {
            "folds": label_errors.NUM_FOLDS, "neighbors": label_errors.NUM_NEIGHBORS,
        },
        "duplicates": {
            "min_edge_correlation": min_similarity,
            "min_pixel_correlation": duplicates.MIN_PIXEL_CORRELATION,
            "crop_sides": list(duplicates.CROP_SIDES),
        },
        "outliers": {
            "neighbors": outliers.NUM_NEIGHBORS, "min_deviations": outliers.MIN_DEVIATIONS,
        },
        "odd_images": {"ratio": data_issues.ODD_RATIO, "blank_std": image_prints.BLANK_STD},
        "imbalance": {"ratio": data_issues.IMBALANCE_RATIO},
    }  # fmt: skip


def _next_training(flags, path):
    """Returns the command that trains without the confirmed rows, in another model directory."""
    data = [
        flags[name].serialize()
        for name in ("dataset", "data_dir", "data_csv", "validation_split")
        if flags[name].value not in (None, flags[name].default)
    ]
    model_dir = RunDirectory.of(flags).path
    return shlex.join(
        [python_program(), "-m", "supcon_tf.main", "--mode=pretrain,linear,eval", *data,
         f"--exclude={path}", f"--model_dir={model_dir}-clean"]
    )  # fmt: skip


def describe_inspection(result: dict, issues: list[Issue], path: str) -> str:
    """Summarizes inspect.json in a short table, with the most certain issue of each kind."""
    total = sum(result["num_images"].values())
    lines = [f"inspect: {total:,} images, compared by {result['features']}"]
    for kind in data_issues.KINDS:
        count = result["kinds"][kind]["count"]
        lines.append(f"  {kind:<14}{count:>7,}  {WHAT[kind]}")
        first = next((issue for issue in issues if issue.kind == kind), None)
        if first is not None:
            text = f"{first.file}: {first.evidence}" if first.file else first.evidence
            lines.append(f"{'':<25}e.g. {printable(text)[:150]}")
    for split, found in result["kinds"]["mislabeled"]["splits"].items():
        lines.append(
            f"  labels of {split}: {found['agreement']:.1%} are what the other images predict; "
            f"estimated share of wrong labels {found['estimated_error_rate']:.1%}"
        )
        if found["agreement"] < RELIABLE_AGREEMENT:
            lines.append(
                "    The images of a class are not alike enough in these features to trust the "
                "list: read it from the top, and expect correct labels in it."
            )
    for split, found in result["kinds"]["leak"]["splits"].items():
        text = f"  {found['num_leaked']:,} of {found['num_images']:,} {split} images leak"
        if "accuracy" in found:
            text += (
                f"; accuracy {found['accuracy']:.4f}, without them "
                f"{found['accuracy_without_leaked']:.4f} ({found['accuracy_of']})"
            )
        lines.append(text)
    lines.append(
        f"  written to {path}: look at the images, and write yes in the column confirmed where you "
        "agree. The next command trains without those."
    )
    return "\n".join(lines)

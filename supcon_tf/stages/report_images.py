"""What a report computes from images: embeddings, views, class counts, and the test images."""

from __future__ import annotations

import copy
import dataclasses
import shlex
import types
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli.program import python_program
from supcon_tf.data import data_identity, decode, sources, streams
from supcon_tf.data.folder_layout import printable
from supcon_tf.evaluation import predictions
from supcon_tf.report.content import Embedding, InputData, LoadImages, Result, Targets
from supcon_tf.report.markup import file_name
from supcon_tf.report.pictures import THUMBNAIL_PX
from supcon_tf.stages import eval_data, inputs, pretrain, preview, starting_encoder, trained
from supcon_tf.stages.report_files import read_evaluation, recorded_flags
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage import files
from supcon_tf.storage.run_paths import IDENTITY
from supcon_tf.training import progress

MAX_POINTS = 3_000
MAX_BEFORE, NUM_VIEW_ROWS = 1_000, 4
# The labels of larger datasets of TFDS are not counted, because that reads the whole dataset.
MAX_COUNTED = 100_000
EVAL_DATA_FLAGS = ("eval_dataset", "eval_data_dir", "eval_data_csv", "eval_split")
VIEW_FLAGS = (
    "augmentation_type", "augmentation_magnitude", "augmentation_compat", "crop_area_range",
    "crop_compat", "horizontal_flip", "blur_probability", "warp_probability", "num_views",
)  # fmt: skip


@dataclasses.dataclass
class ReportImages:
    """The parts of a report that need images; see `report.content`.

    Attributes:
        facts: Name and value of what describes the data.
        find_image: From the name of a file and its split to the image, or None.
    """

    facts: list[tuple[str, str]]
    find_image: Callable[[str, str], np.ndarray | None]
    result: Result | None = None
    embedding: Embedding | None = None
    input: InputData | None = None
    missing: dict[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)


def read_images(flags: FlagValues, run: RunDirectory) -> ReportImages:
    """Reads and computes everything on the data of the run.

    A part that cannot be made is in `missing`, with the reason and the command that makes it.

    Raises:
        ValueError: If the data cannot be read, or is not what the run was trained on.
    """
    flags = _with_flags_of_eval(flags, run)
    splits = inputs.splits_from_flags(flags)
    found = ReportImages(_describe_data(flags, splits), _image_finder(flags, splits))
    _add_input(found, flags, run, splits)
    test = eval_data.eval_data_from_flags(flags, flags.eval_split or "test") if (
        flags.eval_dataset or flags.eval_data_dir or flags.eval_split or splits.held_out
    ) else None  # fmt: skip
    _add_result(found, flags, run, test)
    try:
        with progress.waiting("report: loading the encoder"):
            model = trained.load_trained(flags)
    except ValueError as error:
        found.missing["embedding"] = (str(error), None)
        return found
    eval_data.check_own(flags, model.stage)
    if test is None:
        reason = "The dataset has neither test nor validation images (--validation_split)."
        found.missing["embedding"] = (reason, None)
        return found
    found.embedding = _embedding(flags, run, model, test)
    return found


def _with_flags_of_eval(flags, run):
    """The flags, with the data that eval used unless other data is named."""
    recorded = recorded_flags(run, "eval")
    if recorded is None or any(flags[name].value for name in EVAL_DATA_FLAGS):
        return flags
    flags = copy.deepcopy(flags)
    for name in EVAL_DATA_FLAGS:
        flags[name].value = recorded[name].value
    return flags


def _command_for(run, mode):
    program = [python_program(), "-m", "supcon_tf.main"]
    return shlex.join([*program, f"--mode={mode}", f"--model_dir={run.path}"])


# The data.


def _describe_data(flags, splits):
    rows = [("Dataset", flags.dataset)]
    rows += [
        (title, flags[name].value)
        for name, title in (("data_dir", "Directory"), ("data_csv", "CSV file"))
        if flags[name].value
    ]
    names = splits.train.class_names
    for split in ("train", "validation", "test"):
        source = getattr(splits, split)
        if source is not None:
            rows.append((f"Images, {split}", f"{source.num_examples:,}"))
    if names:
        shown = inputs.first_ten([printable(name) for name in names])
        rows.append(("Classes", f"{len(names):,}: {shown}"))
    digest = data_identity.identity_of(splits.train).digest
    return [*rows, ("Fingerprint of the training data", digest[:16])]


def _image_finder(flags, splits):
    """A function from a name in issues.csv and its split to the image.

    The name is the path of a file, the name that a CSV file gives it, or a position.
    """

    def find(name, split):
        # Of arrays, `train/123` is the place in a split.
        own_split, _, position = name.rpartition("/")
        for source in (getattr(splits, own_split or split, None), splits.train, splits.held_out):
            if isinstance(source, sources.ArraySource):
                if position.isdigit() and int(position) < source.num_examples:
                    return source.images[int(position)]
            elif isinstance(source, sources.FileSource):
                for names in (source.paths, source.names, sources.file_names(source)):
                    if name in names:
                        return _read_file(source.paths[names.index(name)], source.max_pixels)
        return _read_file(name, inputs.max_pixels_from_flags(flags))

    return find


def _read_file(path, max_pixels):
    try:
        return decode.decode_whole(tf.io.read_file(path), max_pixels=max_pixels)
    except (ValueError, OSError, tf.errors.OpError):
        return None


def _add_input(found, flags, run, splits):
    """Adds the views under the policy of pretraining, and the class counts."""
    names = tuple(printable(name) for name in splits.train.class_names)
    counts = {}
    for split in ("train", "validation", "test"):
        source = getattr(splits, split)
        if source is not None and names and (count := _class_counts(source)) is not None:
            counts[split] = count
    views = originals = None
    labels, operations, policy = [], [], []
    recorded = recorded_flags(run, "pretrain")
    if recorded is None:
        reason = "The encoder was not pretrained in this model directory."
        found.missing["views"] = (reason, None)
    else:
        for name in ("data_dir", "data_csv"):  # Where the data is now.
            recorded[name].value = flags[name].value
        policy = [
            (name, recorded[name].serialize().partition("=")[2])
            for name in VIEW_FLAGS
            if recorded[name].value is not None
        ]
        with progress.waiting("report: computing views of sample images"):
            views, originals, labels, operations = _views_of_samples(recorded, splits.train, names)
    found.input = InputData(views, originals, labels, operations, policy, names, counts)


def _views_of_samples(recorded, source, names):
    batch_size = min(NUM_VIEW_ROWS, source.num_examples)
    described = pretrain.views_from_flags(recorded, source)
    views, originals, labels = preview.first_views(recorded, source, described, batch_size)
    operations = preview.describe_views(recorded, described, batch_size)
    texts = [_class_of_label(label, names) for label in labels]
    return views, originals[:, 0], texts, operations


def _class_of_label(label, names):
    if not names:
        return str(label)
    if np.ndim(label):
        return ", ".join(names[index] for index in np.flatnonzero(label)) or "none"
    return names[label]


def _class_counts(source) -> list[int] | None:
    """Images of each class, or None for a stream that would have to be read whole."""
    if isinstance(source, streams.StreamSource):
        if source.num_examples > MAX_COUNTED:
            return None
        pairs = source.examples(seed=None).map(lambda image, label: label)
        labels = np.array(list(pairs.as_numpy_iterator()))
    else:
        labels = np.asarray(source.labels)
    if labels.ndim == 2:
        return labels.sum(axis=0).tolist()
    return np.bincount(labels, minlength=len(source.class_names)).tolist()


# The result.


def _add_result(found, flags, run, test):
    evaluation = read_evaluation(run)
    if evaluation is None:
        has_classifier = run.has(run.classifier_stage, "classifier.keras")
        has_classifier |= run.has("pretrain", "linear_head.keras")
        if has_classifier:
            reason, mode = "The classifier was not evaluated yet.", "eval,report"
        else:
            reason, mode = "The run has no classifier yet.", "linear,eval,report"
        found.missing["result"] = (reason, _command_for(run, mode))
        return
    figures, predicted = evaluation
    load = None
    if test is not None and _are_same(predicted.names, test.source):
        load = _image_loader(flags, test.source, _size_of_thumbnails(run, test.source))
    else:
        print("report: the test images are not those that were evaluated, so none are shown.")
    if not isinstance(predicted, Targets):
        names = tuple(printable(name) for name in predicted.class_names)
        predicted = dataclasses.replace(predicted, class_names=names)
    found.result = Result(figures, predicted, load, _stale(run, figures))


def _stale(run, figures):
    """Says that the classifier is newer than its evaluation, if so."""
    path = figures.get("classifier")
    own = run.file(run.classifier_stage, "classifier.keras")
    is_own = tf.io.gfile.exists(own)
    if is_own and path and figures.get("classifier_sha256") not in (None, files.sha256(own)):
        return (
            "The classifier was trained again after this evaluation. Evaluate it with: "
            + _command_for(run, "eval,report")
        )
    return ""


def _size_of_thumbnails(run, source):
    recorded = recorded_flags(run, "pretrain")
    if recorded is not None and recorded.image_size:
        return min(recorded.image_size, THUMBNAIL_PX)
    return sources.default_image_size(source, largest=THUMBNAIL_PX)


def _are_same(names, source):
    """Whether these are the names of the examples, in order; the folder may have moved."""
    if len(names) != source.num_examples:
        return False
    if isinstance(source, sources.ArraySource):
        return names.dtype.kind in "ui"
    now = sources.example_names(source)
    return [file_name(name) for name in names] == [file_name(name) for name in now]


def _image_loader(flags, source, image_size) -> LoadImages:
    def load(rows):
        chosen = np.asarray(rows)
        if isinstance(source, sources.ArraySource):
            return list(source.images[chosen])
        part = source.choose(chosen) if isinstance(source, sources.FileSource) else source
        batches = inputs.eval_batches_from_flags(flags, part, image_size=image_size)()
        with inputs.naming_broken_images(part):
            if part is not source:
                parts = [(b["image"][b["index"] >= 0]) for b in batches.as_numpy_iterator()]
                return list(np.concatenate(parts)[: len(chosen)])
            kept, wanted = {}, set(map(int, rows))
            for batch in batches.as_numpy_iterator():
                for index in wanted.intersection(batch["index"].tolist()):
                    kept[index] = batch["image"][batch["index"].tolist().index(index)]
        return [kept[int(row)] for row in rows]

    return load


# The embeddings.


def _embedding(flags, run, model, test):
    source = test.source
    count = min(MAX_POINTS, source.num_examples)
    strategy = strategies.create_strategy("one_device")
    side = min(model.image_size, THUMBNAIL_PX)

    def outputs_and_images(images):
        small = images
        if side < model.image_size:
            small = tf.image.resize(images, [side, side], antialias=True)
        small = tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)
        return {**model.outputs(images), "images": small}

    batches = inputs.eval_batches_from_flags(
        flags, source, image_size=model.image_size, limit=count
    )
    waiting = progress.waiting(f"report: computing the embeddings of {count:,} test images")
    with inputs.naming_broken_images(source), waiting:
        outputs, labels = predictions.predict(strategy, outputs_and_images, batches)
    is_stream = isinstance(source, streams.StreamSource)
    chosen = np.arange(count) if is_stream else _spread(source.num_examples, count)
    rows = np.arange(min(MAX_BEFORE, count)) if is_stream else _spread(count, MAX_BEFORE)
    before, reason = _before(flags, run, source, chosen[rows], strategy)
    labels, names = _labels(model, test, labels)
    predicted = None
    if "logits" in outputs and labels is not None:
        logits = outputs["logits"]
        predicted = logits > 0 if model.is_multi_label else logits.argmax(axis=1)
    all_names = sources.example_names(source)
    return Embedding(
        embeddings=outputs["unnormalized_embeddings"],
        labels=labels,
        class_names=names,
        names=[all_names[index] for index in chosen],
        images=outputs["images"],
        predicted=predicted,
        before=before,
        before_rows=None if before is None else rows,
        num_examples=source.num_examples,
        without_before=reason,
        seed=flags.seed,
    )


def _spread(count, limit):
    """Positions that `create_eval_batches` chooses with this limit."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int64)


def _labels(model, test, labels):
    """Labels, in the numbers of the class names that come with them; None without classes."""
    source = test.source
    if source.label_type == "real" or not source.class_names:
        return None, ()
    if model.class_names is None:
        names = source.class_names
    else:
        names = model.class_names
        numbers = eval_data.match_classes(names, test, model.path)
        labels = eval_data.as_of_classifier(labels, numbers, len(names))
    return labels, tuple(printable(name) for name in names)


def _before(flags, run, source, chosen, strategy):
    """Embeddings of the untrained encoder of the same seed, or None and why there are none."""
    recorded = recorded_flags(run, "pretrain")
    if recorded is None:
        return None, "The encoder was not pretrained in this run, so there is no untrained one."
    record = files.read_sealed(run.file("pretrain", IDENTITY)) or {}
    folder = types.SimpleNamespace(measured=record.get("measured", {}))
    train_source = inputs.splits_from_flags(flags).train
    size = pretrain.views_from_flags(recorded, train_source).image_size
    whitening = inputs.whitening_from_flags(recorded, train_source, folder, size)
    keras.utils.set_random_seed(recorded.seed)  # As the stage does before it creates the encoder.
    encoder = starting_encoder.encoder_from_flags(recorded, size, whitening)
    part = source
    if not isinstance(source, streams.StreamSource):
        part = _examples_at(source, chosen)
    batches = inputs.eval_batches_from_flags(flags, part, image_size=size, limit=len(chosen))
    with inputs.naming_broken_images(part), progress.waiting("report: the untrained encoder"):
        before, _ = predictions.predict(
            strategy, lambda images: encoder(images, training=False), batches
        )
    return before, ""


def _examples_at(source, rows):
    if isinstance(source, sources.FileSource):
        return source.choose(rows)
    return dataclasses.replace(source, images=source.images[rows], labels=source.labels[rows])

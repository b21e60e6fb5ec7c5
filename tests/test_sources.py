"""Files and examples that are not what they should be, and what is made of them."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import prepared_tfds
from helpers.command import run_inside
from PIL import Image
from sklearn.datasets import load_sample_images

from supcon_tf.augment import policies
from supcon_tf.data import decode, pipeline, sources, streams

IDENTITY = policies.create_policy("identity")
PHOTO = load_sample_images().images[0][:75, :101]


def encode(array, kind="JPEG", mode=None, **options):
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def write_folder(root, files=(), *, count=4):
    """Two classes of PNG files, and further (path below root, bytes)."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(encode(pixels, "PNG"))
    for path, data in files:
        (root / path).write_bytes(data)
    return str(root)


# Pixels.


def test_cmyk_and_16_bits_become_what_a_viewer_shows():
    cmyk = encode(PHOTO, mode="CMYK", quality=95)
    np.testing.assert_allclose(decode.decode_image(cmyk), PHOTO, atol=3)
    levels = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    expected = np.repeat((levels // 257)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode.decode_image(encode(levels, "PNG")), expected)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(PHOTO, quality=90),
        encode(PHOTO, quality=60, subsampling=2),
        encode(PHOTO, progressive=True),
        encode(PHOTO, mode="L"),
        encode(PHOTO, mode="CMYK"),
        encode(PHOTO, "PNG"),
        encode(PHOTO, "PNG", mode="LA"),
    ],
    ids=["jpeg", "subsampled", "progressive", "gray", "cmyk", "png", "alpha"],
)
def test_decoding_the_crops_gives_the_pixels_of_the_whole_image(encoded):
    whole = decode.decode_image(encoded).numpy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        ends = np.sort(rng.integers(0, [[76, 102]] * 2, (3, 2, 2)), axis=1)  # [V, ends, axes]
        boxes = np.concatenate([ends[:, 0], np.maximum(ends[:, 1] - ends[:, 0], 1)], axis=1)
        boxes[:, :2] = np.minimum(boxes[:, :2], [74, 100])
        window, within = decode.decode_crops(
            encoded, lambda shape, b=boxes: tf.constant(b, tf.int32)
        )
        for (top, left, height, width), (y, x, h, w) in zip(boxes, within.numpy(), strict=True):
            np.testing.assert_array_equal(
                window[y : y + h, x : x + w], whole[top : top + height, left : left + width]
            )


def test_of_a_jpeg_only_the_box_around_the_crops_is_decoded():
    box = tf.constant([[20, 30, 8, 10], [24, 28, 10, 10]])
    window, _ = decode.decode_crops(encode(PHOTO), lambda shape: box)
    assert window.shape == (16, 14, 3)  # 14 x 12 and a margin of 1.


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_one_pixel_is_an_image(tmp_path, kind):
    dot = encode(np.full([1, 1, 3], 200, np.uint8), kind)
    root = write_folder(tmp_path, [("train/cat/9.png", dot), ("test/cat/9.png", dot)])
    train, test = (sources.load_source("folder", split, root) for split in ("train", "test"))
    batches = pipeline.create_train_batches(
        train, policy=IDENTITY, batch_size=9, image_size=8, seed=0
    )
    images = next(iter(batches))["image"].numpy()
    plain = np.ptp(images, axis=(2, 3, 4)) == 0
    assert plain.all(axis=1).sum() == 1 and abs(int(images[plain].mean()) - 200) < 3
    for method in ("auto", "resize_then_crop", "crop_then_resize", "crop_then_distort"):
        (batch,) = pipeline.create_eval_batches(
            test, batch_size=10, image_size=8, crop_method=method
        )
        assert abs(int(batch["image"].numpy()[4].mean()) - 200) < 3


def test_the_size_of_all_images_is_not_taken_from_a_dot(tmp_path):
    dot = encode(np.zeros([1, 1, 3], np.uint8), "PNG")
    root = write_folder(tmp_path, [("train/cat/0.png", dot)])
    with pytest.raises(ValueError, match=r"cat/0.png has 1x1 pixels.*--image_size"):
        sources.default_image_size(sources.load_source("folder", "train", root))


# Files.


@pytest.mark.parametrize(
    "data,reason",
    [
        (b"", "empty"),
        (b"hello", "starts with b'hello'"),
        (b"BM and other words", "starts with b'BM and o'"),
        (encode(PHOTO, "TIFF"), "starts with b'II.*a TIFF file"),
    ],
    ids=["empty", "text", "letters of a bmp", "tiff"],
)
def test_a_file_that_is_no_image_is_named_or_skipped(tmp_path, data, reason):
    root = write_folder(tmp_path, [("train/dog/bad.jpg", data)])
    with pytest.raises(
        ValueError, match=rf"1 of 9 files .*WebP.*--skip_broken_images.*\n.*bad.jpg: {reason}"
    ):
        sources.load_source("folder", "train", root)
    source = sources.load_source("folder", "train", root, skip_broken_images=True)
    assert source.num_examples == 8 and len(source.labels) == 8
    assert [path.rpartition("/")[2] for path in source.skipped] == ["bad.jpg"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_images_are_skipped_counted_and_listed(tmp_path, kind):
    data = encode(PHOTO, kind)
    cuts = [data[: len(data) // 2], data[: len(data) - 20], data[:30]]
    files = [(f"train/cat/cut{index}.jpg", cut) for index, cut in enumerate(cuts)]
    root = write_folder(tmp_path, [*files, ("train/cat/whole.jpg", data)])
    source = sources.load_source("folder", "train", root, skip_broken_images=True)
    assert source.skipped == {f"{root}/{path}": "cannot be decoded" for path, _ in files}
    assert source.num_examples == 9 and f"{root}/train/cat/whole.jpg" in source.paths
    np.testing.assert_array_equal(source.labels, [0] * 5 + [1] * 4)


def test_a_class_of_nothing_but_broken_images_is_refused(tmp_path):
    files = [(f"train/dog/{index}.png", b"\x89PNG\r\n\x1a\n") for index in range(2)]
    root = write_folder(tmp_path, files, count=2)
    with pytest.raises(
        ValueError, match=r"No image of the class dog.*dog/0.png: cannot be decoded"
    ):
        sources.load_source("folder", "train", root, skip_broken_images=True)


# Streams.


class Builder:
    """What StreamSource asks of a TFDS builder."""

    def __init__(self, images, labels):
        names = [f"data-train.tfrecord__{index}" for index in range(len(labels))]
        self._examples = {"image": images, "label": labels, "tfds_id": names}

    def as_dataset(self, **_):
        return tf.data.Dataset.from_tensor_slices(self._examples)


def stream(images, labels, class_names=("cat", "dog")):
    return streams.StreamSource(Builder(images, labels), "train", len(labels), class_names)


GOOD = encode(PHOTO[:8, :8], "PNG")


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_a_label_outside_the_classes_stops_with_the_examples_name(label):
    source = stream([GOOD] * 4, np.array([0, 1, label, 1], np.int64))
    for batches in (
        pipeline.create_train_batches(source, policy=IDENTITY, batch_size=4, image_size=8, seed=0),
        pipeline.create_eval_batches(source, batch_size=4, image_size=8),
    ):
        message = rf"example .*__2.* has the label {label}, but there are 2 classes"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            next(iter(batches))


def test_a_broken_example_of_a_stream_is_found():
    labels = np.zeros(3, np.int64)
    assert streams.find_broken(stream([GOOD, GOOD[:40], GOOD], labels)).endswith("__1")
    assert streams.find_broken(stream([GOOD] * 3, labels)) is None


# Which examples, with which labels.


def numbered_source(num_examples=2000, num_classes=10):
    labels = np.arange(num_examples, dtype=np.int32) % num_classes
    images = np.zeros([num_examples, 1, 1, 3], np.uint8)
    return sources.ArraySource(images, labels, tuple(map(str, range(num_classes))))


def test_the_first_files_are_those_of_every_class_in_turn():
    labels = np.array([0] * 5 + [1] * 2 + [2] * 5, np.int32)
    paths = tuple(f"{label}/{index}" for index, label in enumerate(labels))
    source = sources.FileSource(paths, labels, ("a", "b", "c"))
    few = sources.first_examples(source, 8)
    assert few.paths == ("0/0", "0/1", "0/2", "1/5", "1/6", "2/7", "2/8", "2/9")
    np.testing.assert_array_equal(few.labels, [0, 0, 0, 1, 1, 2, 2, 2])
    assert sources.first_examples(source, 2).paths == ("0/0", "1/5")


def test_the_first_examples_of_arrays_and_streams():
    few = sources.first_examples(numbered_source(), 30)
    np.testing.assert_array_equal(few.labels, np.arange(30) % 10)
    assert few.images.shape[0] == few.num_examples == 30
    few = sources.first_examples(stream([GOOD] * 4, np.zeros(4, np.int64)), 3)
    assert (few.split, few.num_examples) == ("train[:3]", 3)
    with pytest.raises(
        ValueError, match="num_images=2001.*2,000 training examples.*--num_images=0"
    ):
        sources.first_examples(numbered_source(), 2001)


def test_the_first_examples_of_each_class_are_balanced():
    arrays = sources.ArraySource(
        np.zeros([6, 2, 2, 3], np.uint8), np.array([1, 1, 1, 0, 0, 1]), "ab"
    )
    few = sources.first_per_class(arrays, 2)
    np.testing.assert_array_equal(few.labels, [1, 1, 0, 0])
    assert few.images.shape[0] == 4
    paths = tuple(f"{index}" for index in range(6))
    files = sources.first_per_class(sources.FileSource(paths, arrays.labels, ("a", "b")), 1)
    assert files.paths == ("0", "3")
    noisy = dataclasses.replace(arrays, labels=1 - arrays.labels)
    few = sources.first_per_class(noisy, 2, true_labels=arrays)
    np.testing.assert_array_equal(few.labels, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="the class a has 2 training examples"):
        sources.first_per_class(arrays, 3)
    several = dataclasses.replace(arrays, labels=np.eye(2)[arrays.labels], label_type="multi_label")
    with pytest.raises(ValueError, match="one class per image.*--num_images"):
        sources.first_per_class(several, 1)


def noisy_labels(source):
    if isinstance(source, sources.ArraySource):
        return source.labels
    return np.array([label for _, label in source.examples(seed=None).as_numpy_iterator()])


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_label_noise_is_uniform_and_fixed_by_seed_and_example(kind):
    """Of 2,000 labels a share p (1 - 1/C) changes, within five standard deviations."""
    clean = numbered_source()
    if kind == "stream":
        labels = clean.labels.astype(np.int64)
        clean = stream([GOOD] * 2000, labels, clean.class_names)
    before = noisy_labels(clean)
    after = noisy_labels(sources.with_label_noise(clean, 0.4, seed=3))
    expected, spread = 0.4 * 0.9, np.sqrt(0.36 * 0.64 / 2000)
    assert abs(np.mean(before != after) - expected) < 5 * spread
    counts = np.bincount(after[before != after], minlength=10)
    assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.5 * counts.mean()
    assert after.dtype == np.int32
    np.testing.assert_array_equal(after, noisy_labels(sources.with_label_noise(clean, 0.4, seed=3)))
    assert np.any(after != noisy_labels(sources.with_label_noise(clean, 0.4, seed=4)))
    np.testing.assert_array_equal(
        before, noisy_labels(sources.with_label_noise(clean, 0.0, seed=3))
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A real TFDS dataset of 24 images in four files, each of another gray."""
    import tensorflow_datasets as tfds

    class PlainGreys(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=4),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(24):
                image = np.full((8, 8, 3), 10 * index, np.uint8)
                yield index, {"image": image, "label": index % 4}

    folder = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(num_shards=4)
    PlainGreys(data_dir=folder).download_and_prepare(download_config=config)
    return sources.load_source("plain_greys", "train", folder)


def labels_by_grey(source, num_steps, **options):
    batches = pipeline.create_train_batches(
        source, policy=IDENTITY, image_size=8, seed=1, num_views=1, **options
    )
    seen = set()
    for batch in batches.take(num_steps):
        greys = batch["image"].numpy()[:, 0, 0, 0, 0].tolist()
        seen |= set(zip(greys, batch["label"].numpy().tolist(), strict=True))
    return seen


def test_label_noise_of_tfds_is_the_same_for_any_epoch_host_and_part(prepared):
    noisy = sources.with_label_noise(prepared, 0.8, seed=5)
    three_epochs = labels_by_grey(noisy, 9, batch_size=8)
    assert len(three_epochs) == 24  # One label for each image, in every epoch.
    assert three_epochs != labels_by_grey(prepared, 3, batch_size=8)
    hosts = [
        labels_by_grey(noisy, 3, batch_size=8, num_replicas=2, num_hosts=2, host=host)
        for host in range(2)
    ]
    assert hosts[0] | hosts[1] == three_epochs
    few = dataclasses.replace(sources.first_examples(noisy, 6))
    assert len(labels_by_grey(few, 2, batch_size=6)) == 6
    assert labels_by_grey(few, 2, batch_size=6) <= three_epochs


def test_tfds_streams_start_anywhere_and_ignore_the_seed_of_the_process(prepared):
    """A process seed of 0, which the command sets by default, was refused by tf.data."""

    def order(start, count):
        stream = prepared.examples(seed=0, start=start).take(count)
        return [tf.io.decode_png(image).numpy()[0, 0, 0] for image, _ in stream]

    tf.random.set_seed(0)
    three_epochs = order(0, 72)
    tf.random.set_seed(1)
    for start in (0, 5, 24, 51):
        assert order(start, 6) == three_epochs[start : start + 6]
    epochs = np.reshape(three_epochs, [3, 24])
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])


@pytest.mark.slow
def test_a_prepared_tfds_dataset_runs_through_the_command(tmp_path, capsys):
    prepared_tfds.write_two_greys(tmp_path / "tfds")
    run_inside(
        "--dataset=two_greys", f"--data_dir={tmp_path / 'tfds'}", f"--model_dir={tmp_path}",
        "--image_size=16", "--batch_size=8", "--eval_batch_size=4", "--pretrain_epochs=2",
        "--pretrain_warmup_epochs=0", "--linear_epochs=2",
    )  # fmt: skip
    assert "16 training and 6 test examples of 2 classes (dark, bright)" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval/eval.json").read_text())["num_examples"] == 6

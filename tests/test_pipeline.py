import io
import itertools
import os
import pathlib
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.shared_policies import brightness_policy, shared_policy
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow.python.eager import context

from supcon_tf.data import crops, decode, image_facts, pipeline, sources, views, whole_images

SIDE = 8
SIMCLR = shared_policy("simclr", magnitude=0.5)
IDENTITY = shared_policy("identity")
BRIGHTNESS = brightness_policy()


def noise_source(num_examples=24, side=12):
    images = np.random.default_rng(0).integers(0, 256, (num_examples, side, side, 3))
    labels = np.arange(num_examples, dtype=np.int32) % 3
    return sources.ArraySource(images.astype(np.uint8), labels, ("a", "b", "c"))


def plain_image(index, height=12, width=12):
    """An image of one color that names its example, whatever is cropped from it."""
    return np.full((height, width, 3), 10 * index, np.uint8)


def plain_source(num_examples=24):
    images = np.stack([plain_image(index) for index in range(num_examples)])
    labels = np.arange(num_examples, dtype=np.int32)
    return sources.ArraySource(images, labels, tuple(map(str, labels)))


def examples_in(batch):
    """Which examples of a source of plain images a batch holds."""
    return (np.asarray(batch["image"])[:, 0, 0, 0, 0].astype(int) + 5) // 10


MADE = {}


def create(source, num_steps=3, *, fresh=False, batch_size=8, policy=BRIGHTNESS, seed=0, **options):
    """The first batches of a source. Tests share them, because every dataset is traced again."""
    key = (id(source), num_steps, batch_size, id(policy), seed, *sorted(options.items()))
    if fresh or key not in MADE:
        batches = pipeline.create_train_batches(
            source, policy=policy, batch_size=batch_size, image_size=SIDE, seed=seed, **options
        )
        made = [{name: x.numpy() for name, x in batch.items()} for batch in batches.take(num_steps)]
        MADE[key] = source, made  # With the source, so that no other object gets its id.
    return MADE[key][1]


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], other[name])


def concatenate(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def write_image(path, array, **options):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight plain images for training and four for the test, of two classes, partly JPEG."""
    root = str(tmp_path_factory.mktemp("folder"))
    for index in range(8):
        name = f"{index}.png" if index % 4 else f"{index}.jpg"
        split_class = os.path.join("train", "cat" if index < 4 else "dog")
        write_image(os.path.join(root, split_class, name), plain_image(index, 12, 9 + index))
    for index in range(4):
        path = os.path.join(root, "test", "cat" if index < 2 else "dog", f"{index}.png")
        write_image(path, plain_image(index))
    return root


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TensorFlow Datasets directory with 24 and 10 plain images, the first in four files."""
    import tensorflow_datasets as tfds

    class PlainColors(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["dark", "bright"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(24), "test": self._generate_examples(10)}

        def _generate_examples(self, num_examples):
            for index in range(num_examples):
                image = plain_image(index, 12, 9 + index % 5)
                yield index, {"image": image, "label": int(index >= num_examples // 2)}

    folder = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(num_shards=4)
    PlainColors(data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.fixture(scope="module", params=["array", "folder", "tfds"])
def any_source(request):
    """One source of plain images of each kind, with examples 0 .. num_examples - 1."""
    if request.param == "array":
        return plain_source(8)
    if request.param == "folder":
        return sources.load_source("folder", "train", request.getfixturevalue("folder"))
    return sources.load_source("plain_colors", "train", request.getfixturevalue("tfds_folder"))


# The digits.


def test_digits_are_split_into_1437_and_360_with_nothing_in_both():
    train, test = (sources.load_source("digits", split) for split in ("train", "test"))
    assert (train.num_examples, test.num_examples) == (1437, 360)
    rows = [{image.tobytes() for image in source.images} for source in (train, test)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 1797
    assert train.class_names == test.class_names == tuple("0123456789")


def test_digits_are_stratified():
    """Each class has its share of the 360 test images, to the nearest image."""
    total = np.bincount(load_digits().target)
    train, test = (sources.load_source("digits", split) for split in ("train", "test"))
    counts = np.bincount(test.labels)
    assert np.abs(counts - 360 / 1797 * total).max() < 1
    np.testing.assert_array_equal(counts + np.bincount(train.labels), total)


def test_digits_are_grey_images_of_their_class():
    train = sources.load_source("digits", "train")
    side, border = sources.DIGITS_SIDE, sources.DIGITS_BORDER
    assert train.images.shape == (1437, 20, 20, 3) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.images.min() == 0 and train.images.max() == 255
    np.testing.assert_array_equal(train.images[..., 0], train.images[..., 2])
    inner = train.images[:, border:-border, border:-border, 0]
    assert inner.sum(dtype=np.int64) == train.images[..., 0].sum(dtype=np.int64)  # A black border.
    small = inner.reshape(-1, 8, side // 8, 8, side // 8).mean(axis=(2, 4))
    raw, raw_labels = load_digits(return_X_y=True)
    small, raw = small.reshape(-1, 64) / 255, raw / 16
    distances = np.sum(raw**2, axis=1) - 2 * small @ raw.T  # squared, but for |small|^2
    np.testing.assert_array_equal(raw_labels[np.argmin(distances, axis=1)], train.labels)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="digits has no validation split"):
        sources.load_source("digits", "validation")
    with pytest.raises(ValueError, match="'dev'.* train, validation, test"):
        sources.load_source("digits", "dev")


# Training batches.


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_batches_hold_views_and_labels(num_views):
    (batch,) = create(noise_source(), 1, num_views=num_views)
    assert batch["image"].shape == (8, num_views, SIDE, SIDE, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32


def test_shapes_are_static():
    batches = pipeline.create_train_batches(
        noise_source(), policy=BRIGHTNESS, batch_size=8, image_size=SIDE, seed=0
    )
    assert batches.element_spec["image"].shape == [8, 2, SIDE, SIDE, 3]
    assert batches.element_spec["label"].shape == [8]


def test_views_of_an_example_differ_and_so_do_its_epochs():
    first, second = create(noise_source(8), 2)
    assert np.all(np.any(first["image"][:, 0] != first["image"][:, 1], axis=(1, 2, 3)))
    order = [np.lexsort(b["image"].reshape(8, -1).T) for b in (first, second)]
    assert np.any(first["image"][order[0]] != second["image"][order[1]])


def test_same_seed_same_bytes_and_another_seed_others(any_source):
    batches = create(any_source, seed=1)
    assert_equal(create(any_source, seed=1, fresh=True), batches)
    for batch, other in zip(create(any_source, seed=2), batches, strict=True):
        assert np.any(batch["image"] != other["image"])


@pytest.fixture
def restore_global_seed():
    seed = context.global_seed()
    yield
    context.set_global_seed(seed)


def test_the_seed_alone_decides(any_source, restore_global_seed):
    """Neither TensorFlow's global seed nor the number of threads matters.

    `test_input_options.py` augments files as SimCLR with any number of threads.
    """
    context.set_global_seed(None)
    policy = SIMCLR if isinstance(any_source, sources.ArraySource) else BRIGHTNESS
    batches = create(any_source, seed=1, policy=policy)
    tf.random.set_seed(1234)
    dataset = pipeline.create_train_batches(
        any_source, policy=policy, batch_size=8, image_size=SIDE, seed=1
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    assert_equal([dict(batch) for batch in dataset.with_options(options).take(3)], batches)
    assert context.global_seed() == 1234


def test_a_later_start_continues_the_same_batches(any_source):
    """Of a batch size that does not divide the epochs, from within the first and a later one."""
    batches = create(any_source, 8, batch_size=5)
    for start in (1, 6):
        assert_equal(create(any_source, 8 - start, batch_size=5, start_step=start), batches[start:])


def test_replicas_share_the_global_batch(any_source):
    batches = create(any_source, 3)
    parts = create(any_source, 12, num_replicas=4)
    assert all(len(part["label"]) == 2 for part in parts)
    assert_equal([concatenate(parts[4 * step :][:4]) for step in range(3)], batches)


@pytest.mark.parametrize("kind", ["array", "folder"])
def test_hosts_share_the_global_batch(kind, folder):
    source = plain_source(8) if kind == "array" else sources.load_source("folder", "train", folder)
    batches = create(source, 3)
    options = {"num_replicas": 4, "num_hosts": 2}
    hosts = [create(source, 6, host=host, **options) for host in range(2)]
    for step, batch in enumerate(batches):
        parts = [part for host in hosts for part in host[2 * step :][:2]]
        assert all(len(part["label"]) == 2 for part in parts)
        assert_equal([concatenate(parts)], [batch])


@pytest.mark.parametrize("batch_size", [8, 5])
def test_every_epoch_holds_every_example_once(any_source, batch_size):
    """Also where a batch holds the end of one epoch and the start of the next."""
    size = any_source.num_examples
    num_steps = -(-4 * size // batch_size)
    batches = create(any_source, num_steps, batch_size=batch_size, policy=IDENTITY)
    stream = np.concatenate([examples_in(batch) for batch in batches])
    epochs = [stream[epoch * size :][:size] for epoch in range(4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    for one, other in itertools.combinations(epochs, 2):
        assert np.any(one != other)
    assert np.any(epochs[0] != np.arange(size))


def test_labels_go_with_their_images(any_source):
    expected = {example: label for label, example in _labels_and_examples(any_source)}
    for batch in create(any_source, 5, policy=IDENTITY):
        labels = [expected[example] for example in examples_in(batch)]
        np.testing.assert_array_equal(batch["label"], labels)


def _labels_and_examples(source):
    batches = pipeline.create_eval_batches(source, batch_size=1, image_size=SIDE)
    return [(int(b["label"][0]), (int(b["image"][0, 0, 0, 0]) + 5) // 10) for b in batches]


@pytest.mark.parametrize("num_examples", [12, 24, 100])
def test_epochs_are_shuffled_evenly(num_examples):
    """Over 300 epochs each example comes first equally often (chi-squared, 5 deviations).

    Random permutations leave one example in place on average, and two beside their neighbor.
    """
    source = sources.ArraySource(
        np.zeros([num_examples, 1, 1, 3], np.uint8),
        np.arange(num_examples, dtype=np.int32),
        ("only",),
    )
    batches = pipeline.create_train_batches(
        source, policy=IDENTITY, batch_size=num_examples, image_size=1, seed=0, num_views=1
    )
    epochs = np.stack([batch["label"] for batch in batches.take(300).as_numpy_iterator()])
    first, expected = np.bincount(epochs[:, 0], minlength=num_examples), 300 / num_examples
    chi_squared = np.sum((first - expected) ** 2 / expected)
    freedom = num_examples - 1
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)
    assert 0.7 < np.sum(epochs == np.arange(num_examples)) / 300 < 1.3
    assert 0.7 < np.sum(epochs[1:] == epochs[:-1]) / 299 < 1.3
    assert 1.4 < np.sum(np.abs(np.diff(epochs)) == 1) / 300 < 2.6


def test_half_of_the_views_are_mirrored():
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8)[:, None] * 20, (SIDE, 1, 3))
    source = sources.ArraySource(np.stack([ramp] * 64), np.zeros(64, np.int32), ("ramp",))
    for flip, low, high in ((True, 0.4, 0.6), (False, 0.0, 0.0)):
        batches = create(source, 4, batch_size=64, policy=IDENTITY, horizontal_flip=flip)
        images = concatenate(batches)["image"].astype(int)
        mirrored = images[..., 0, 0, 0] > images[..., 0, -1, 0]  # [B, V]
        assert low <= mirrored.mean() <= high
        assert np.any(mirrored[:, 0] != mirrored[:, 1]) == flip


@pytest.mark.parametrize(
    "batch_size,options,message",
    [
        (25, {}, "batch_size=25 is larger than the 24 training examples"),
        (10, {"num_replicas": 4}, "batch_size=10 .* by 4 .*--batch_size=8 or 12"),
        (2, {"num_replicas": 4}, "batch_size=2 .*--batch_size=4"),
        (0, {}, "batch_size=0 cannot be shared"),
        (9, {"num_replicas": 3, "num_hosts": 2}, "3 replicas cannot be shared evenly by 2 hosts"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        create(noise_source(), 1, batch_size=batch_size, **options)


# Evaluation batches.


@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_evaluation_covers_every_example_once_and_in_order(any_source, batch_size):
    size = any_source.num_examples
    batches = list(pipeline.create_eval_batches(any_source, batch_size=batch_size, image_size=SIDE))
    assert all(batch["image"].shape == (batch_size, SIDE, SIDE, 3) for batch in batches)
    whole = concatenate([{name: x.numpy() for name, x in batch.items()} for batch in batches])
    np.testing.assert_array_equal(whole["index"][:size], np.arange(size))
    assert np.all(whole["index"][size:] == -1) and len(whole["index"]) - size < batch_size
    assert np.all(whole["image"][size:] == 0)
    examples = (whole["image"][:size, 0, 0, 0].astype(int) + 5) // 10
    assert sorted(examples) == list(range(size))
    if isinstance(any_source, sources.ArraySource | sources.FileSource):
        np.testing.assert_array_equal(whole["label"][:size], any_source.labels)


def test_evaluation_of_part_of_a_source_spreads_over_it():
    batches = pipeline.create_eval_batches(plain_source(), batch_size=4, image_size=SIDE, limit=6)
    whole = concatenate([{name: x.numpy() for name, x in batch.items()} for batch in batches])
    np.testing.assert_array_equal(whole["index"], [0, 1, 2, 3, 4, 5, -1, -1])
    np.testing.assert_array_equal(whole["label"][:6], [0, 4, 9, 13, 18, 23])


@pytest.mark.parametrize(
    "height,width,image_size,box",
    [
        (16, 16, 16, (0, 0, 16, 16)),
        (16, 12, 16, (2, 0, 12, 12)),  # small images are enlarged whole
        (256, 256, 224, (16, 16, 224, 224)),
        (300, 400, 224, (19, 69, 262, 262)),
        (226, 240, 224, (1, 8, 224, 224)),  # never less than S
    ],
)
def test_central_crop_leaves_an_eighth_of_larger_images(height, width, image_size, box):
    result = crops.central_box(tf.constant(height), tf.constant(width), image_size)
    np.testing.assert_array_equal(result, box)


def test_images_of_the_right_size_are_evaluated_as_they_are():
    source = noise_source(side=SIDE)
    (batch,) = pipeline.create_eval_batches(source, batch_size=24, image_size=SIDE)
    np.testing.assert_array_equal(batch["image"], source.images)


# Folders.


def test_folder_names_classes_and_finds_its_files(folder):
    train, test = (sources.load_source("folder", split, folder) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    np.testing.assert_array_equal(train.labels, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(test.labels, [0, 0, 1, 1])
    assert train.labels.dtype == np.int32
    assert train.paths[0] == os.path.join(folder, "train", "cat", "0.jpg")
    assert (train.num_examples, test.num_examples) == (8, 4)


def test_validation_stands_for_test_and_hidden_files_are_passed_over(tmp_path):
    root = str(tmp_path)
    for split, name in itertools.product(("train", "validation"), ("b", "a")):
        write_image(os.path.join(root, split, name, "1.png"), plain_image(1))
        (tmp_path / split / name / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "train" / "notes.txt").write_text("beside the classes")
    (tmp_path / "train" / ".git").mkdir()
    source = sources.load_source("folder", "test", root)
    assert source.class_names == ("a", "b")
    assert [os.path.relpath(path, root) for path in source.paths] == [
        os.path.join("validation", "a", "1.png"),
        os.path.join("validation", "b", "1.png"),
    ]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "RGB", "CMYK"])
def test_every_kind_of_image_file_gives_three_channels(mode):
    """Gray is repeated and alpha dropped, as Pillow's conversion of an opaque image."""
    image = Image.fromarray(np.kron(np.arange(16).reshape(4, 4, 1) * 15, np.ones((4, 4, 3), int))
                            .astype(np.uint8)).convert(mode)  # fmt: skip
    for kind in ("PNG", "JPEG"):
        if (kind == "JPEG") != (mode == "CMYK") and not (kind == "JPEG" and mode in ("L", "RGB")):
            continue
        file = io.BytesIO()
        image.save(file, kind)
        decoded = decode.decode_image(tf.constant(file.getvalue())).numpy()
        expected = np.asarray(Image.open(file).convert("RGB"))
        assert decoded.dtype == np.uint8 and decoded.shape == (16, 16, 3)
        np.testing.assert_allclose(
            decoded.astype(int), expected.astype(int), atol=3 if kind == "JPEG" else 0
        )


def test_alpha_is_dropped_and_not_blended():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(
        decode.decode_image(tf.constant(file.getvalue())), pixels[..., :3]
    )


BROKEN_FOLDERS = {
    "no data_dir": "needs --data_dir",
    "missing data_dir": "is not a folder",
    "no train": "train is missing; .* holds test",
    "nothing": "data holds nothing. .*train/",
    "one class": r"holds 1 class folder\(s\).* at least two",
    "no class": r"holds 0 class folder\(s\)",
    "empty class": "The class folder .*dog is empty",
    "empty file": "1 of 5 files .*--skip_broken_images.*(\n.*)*bad.png: empty",
    "not an image": "bad.png: starts with b'%PDF-1.7",
    "folder among images": "bad.png: a folder among images",
}


@pytest.mark.parametrize("what", BROKEN_FOLDERS)
def test_a_folder_that_cannot_be_trained_on_is_refused(what, tmp_path):
    root = str(tmp_path / "data")
    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        for index in range(2):
            write_image(os.path.join(root, split, name, f"{index}.png"), plain_image(index))
    train = tmp_path / "data" / "train"

    def remove(path):
        tf.io.gfile.rmtree(str(path))

    if what == "no data_dir":
        root = None
    elif what == "missing data_dir":
        remove(root)
    elif what == "no train":
        remove(train)
    elif what == "nothing":
        remove(train)
        remove(os.path.join(root, "test"))
    elif what in ("one class", "no class"):
        remove(train / "dog")
        if what == "no class":
            remove(train / "cat")
    elif what == "empty class":
        remove(train / "dog")
        (train / "dog").mkdir()
    elif what == "empty file":
        (train / "cat" / "bad.png").write_bytes(b"")
    elif what == "not an image":
        (train / "cat" / "bad.png").write_bytes(b"%PDF-1.7 ...")
    else:
        (train / "cat" / "bad.png").mkdir()
    with pytest.raises(ValueError, match=BROKEN_FOLDERS[what]):
        sources.load_source("folder", "train", root)


def test_a_test_folder_that_does_not_fit_is_refused(tmp_path):
    root = str(tmp_path)
    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        write_image(os.path.join(root, split, name, "1.png"), plain_image(1))
    tf.io.gfile.rmtree(os.path.join(root, "test", "dog"))
    assert sources.load_source("folder", "test", root).num_examples == 1
    os.mkdir(os.path.join(root, "test", "cow"))
    with pytest.raises(ValueError, match="test holds classes that .*train lacks: cow"):
        sources.load_source("folder", "test", root)
    tf.io.gfile.rmtree(os.path.join(root, "test"))
    with pytest.raises(ValueError, match="has no test split"):
        sources.load_source("folder", "test", root, validation_split=0.0)
    os.makedirs(os.path.join(root, "test", "cat"))
    with pytest.raises(ValueError, match="holds no images"):
        sources.load_source("folder", "test", root)
    tf.io.gfile.rmtree(os.path.join(root, "train"))
    with pytest.raises(ValueError, match="train is missing; .* holds test"):
        sources.load_source("folder", "test", root)


def test_many_bad_files_are_counted_and_the_first_ten_named(tmp_path):
    for name in ("cat", "dog"):
        write_image(str(tmp_path / "train" / name / "good.png"), plain_image(1))
    for index in range(13):
        (tmp_path / "train" / "cat" / f"bad{index:02d}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="13 of 15 files") as error:
        sources.load_source("folder", "train", str(tmp_path), validation_split=0.0)
    assert str(error.value).count(": empty") == 10
    assert "and 3 more" in str(error.value)


def test_a_file_damaged_behind_its_first_bytes_stops_the_step_and_is_found(tmp_path):
    for index, name in itertools.product(range(4), ("cat", "dog")):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3)).astype(np.uint8)
        write_image(str(tmp_path / "train" / name / f"{index}.png"), pixels)
    damaged = tmp_path / "train" / "dog" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    source = sources.load_source("folder", "train", str(tmp_path), validation_split=0.0)
    with pytest.raises(tf.errors.InvalidArgumentError):
        create(source, 1)
    paths = pipeline.paths_of_steps(source, batch_size=8, seed=0, first_step=0, last_step=0)
    assert sorted(paths) == sorted(source.paths)
    assert list(decode.find_undecodable(paths)) == [str(damaged)]


def test_files_are_decoded_in_order_by_one_graph_and_not_by_python_threads(tmp_path, monkeypatch):
    """Eager operations in several Python threads of a young process crash now and then."""
    threads, decode_image = [], decode.decode_image

    def counted(*arguments, **options):
        threads.append(threading.current_thread())
        return decode_image(*arguments, **options)

    monkeypatch.setattr(decode, "decode_image", counted)
    paths = [str(tmp_path / f"{index}.png") for index in range(20)]
    for index, path in enumerate(paths):
        write_image(path, plain_image(index))
    pathlib.Path(paths[7]).write_bytes(b"not an image")
    pathlib.Path(paths[15]).unlink()
    found = decode.decoded_files(paths).ignore_errors().as_numpy_iterator()
    values = {int(index): int(image.max()) for index, image in found}
    assert list(values) == [index for index in range(20) if index not in (7, 15)]
    assert all(value == 10 * index for index, value in values.items())
    assert len(threads) < 6 and set(threads) == {threading.main_thread()}
    threads.clear()
    reasons = decode.find_undecodable(paths)
    source = types.SimpleNamespace(paths=paths, num_examples=20, max_pixels=10**6, class_names="a")
    assert image_facts.facts_of(source).side_px == 12
    good = types.SimpleNamespace(paths=paths[:7], max_pixels=10**6)
    assert [image.max() for image in whole_images.whole_images(good)] == list(range(0, 70, 10))
    assert threads and set(threads) == {threading.main_thread()}
    assert reasons == {
        paths[7]: "cannot be decoded",
        paths[15]: "cannot be read: No such file or directory",
    }


def test_paths_of_steps_are_those_that_the_steps_read(folder):
    source = sources.load_source("folder", "train", folder)
    batches = create(source, 4, batch_size=3, policy=IDENTITY, seed=5)
    for step, batch in enumerate(batches):
        paths = pipeline.paths_of_steps(
            source, batch_size=3, seed=5, first_step=step, last_step=step
        )
        names = {int(os.path.splitext(os.path.basename(path))[0]) for path in paths}
        assert names == set(examples_in(batch))


# TensorFlow Datasets.


def test_tfds_source_knows_its_size_and_classes(tfds_folder):
    train, test = (
        sources.load_source("plain_colors", split, tfds_folder) for split in ("train", "test")
    )
    assert (train.num_examples, test.num_examples) == (24, 10)
    assert train.class_names == ("dark", "bright")
    assert sources.default_image_size(train) == 224  # the sides vary


def test_tfds_labels_go_with_their_images(tfds_folder):
    source = sources.load_source("plain_colors", "train", tfds_folder)
    for batch in create(source, 4, policy=IDENTITY):
        np.testing.assert_array_equal(batch["label"], examples_in(batch) >= 12)


def test_tfds_hosts_share_every_epoch(tfds_folder):
    source = sources.load_source("plain_colors", "train", tfds_folder)
    hosts = [
        create(source, 6, policy=IDENTITY, host=host, num_hosts=2, num_replicas=2)
        for host in range(2)
    ]
    streams = [np.concatenate([examples_in(batch) for batch in host]) for host in hosts]
    assert not set(streams[0]) & set(streams[1])
    for epoch in range(2):
        both = np.concatenate([stream[12 * epoch :][:12] for stream in streams])
        np.testing.assert_array_equal(np.sort(both), np.arange(24))


def test_unknown_dataset_is_refused_with_where_to_look(tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset 'no_such_data'.*catalog"):
        sources.load_source("no_such_data", "train", str(tmp_path))


def test_flips_and_sizes_suit_the_dataset(folder):
    assert sources.may_flip("cifar10") and sources.may_flip("folder")
    for name in ("digits", "mnist", "emnist/letters", "mnist:3.0.1"):
        assert not sources.may_flip(name)
    assert sources.default_image_size(sources.load_source("digits", "train")) == 20
    assert sources.default_image_size(sources.load_source("folder", "train", folder)) == 9


# Crops.


@pytest.mark.parametrize("size", [1, 5, 16, 40])
def test_crop_and_resize_equals_slice_and_resize_within_a_level(size):
    images = np.random.default_rng(size).integers(0, 256, (20, 24, 31, 3)).astype(np.uint8)
    draws = tf.random.stateless_uniform([20, crops.num_crop_draws("reference")], [size, 0])
    boxes = crops.random_crop_boxes(draws, tf.fill([20], 24), tf.fill([20], 31)).numpy()
    boxes[0], boxes[1] = (0, 0, 24, 31), (23, 30, 1, 1)
    result = views.make_views(
        images, boxes[:, None], np.zeros([20, 1], bool), np.zeros([20, 1, 0], np.float32),
        policy=IDENTITY, size=size,
    )[:, 0]  # fmt: skip
    assert result.dtype == tf.uint8 and result.shape == (20, size, size, 3)
    for row, (top, left, height, width) in enumerate(boxes):
        crop = images[row, top : top + height, left : left + width]
        expected = tf.image.resize(crop, [size, size]).numpy()
        assert np.abs(result[row].numpy() - expected).max() <= 0.5 + 1e-3


def test_flip_mirrors_the_chosen_images():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3)).astype(np.uint8)
    boxes = np.tile(np.array([0, 0, 3, 3], np.int32), (4, 1, 1))
    flips, draws = np.array([[True], [False]] * 2), np.zeros([4, 1, 0], np.float32)
    result = views.make_views(images, boxes, flips, draws, policy=IDENTITY, size=3)[:, 0].numpy()
    np.testing.assert_array_equal(result[[1, 3]], images[[1, 3]])
    np.testing.assert_array_equal(result[[0, 2]], images[[0, 2], :, ::-1])

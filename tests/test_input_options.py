"""What flags change about the input: balance, order, evaluation crops, whitening, blur."""

import re

import numpy as np
import pytest
import tensorflow as tf
from helpers import command, prepared_tfds
from helpers.shared_policies import shared_policy
from PIL import Image
from sklearn.datasets import load_sample_images

from supcon_tf.augment import blur
from supcon_tf.data import batch_plan, crops, decode, pipeline, sources, streams, whitening

IDENTITY = shared_policy("identity")
SIMCLR = shared_policy("simclr", magnitude=0.5)
PHOTO = load_sample_images().images[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve JPEG and PNG files of different shapes, of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(12):
        folder = root / "train" / ("cat" if index < 8 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(PHOTO[20 * index :][: 40 + index, 30 * index :][:, :50])
        image.save(folder / f"{index}.{'png' if index % 3 == 0 else 'jpg'}")
    return sources.load_source("folder", "train", str(root))


# Order.


def balanced_rows(labels, num_steps, batch_size, **options):
    plan = batch_plan.BatchPlan(
        num_examples=len(labels), batch_size=batch_size, seed=3, balanced_labels=labels, **options
    )
    return np.concatenate([plan.index(step).numpy() for step in range(num_steps)])


def test_balanced_classes_come_equally_often_and_go_through_all_their_examples():
    labels = np.array([5] * 30 + [2] * 3 + [7] * 9, np.int32)
    rows = balanced_rows(labels, 45, 6)  # 270 rows: 90 of each class.
    runs = labels[rows].reshape(-1, 3)
    assert all(sorted(run) == [2, 5, 7] for run in runs.tolist())
    assert len({tuple(run) for run in runs.tolist()}) == 6  # In every order.
    for label, count in ((5, 30), (2, 3), (7, 9)):
        epochs = rows[labels[rows] == label].reshape(-1, count)
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(labels == label))
        assert np.any(epochs != epochs[0])


def test_balanced_rows_do_not_depend_on_batch_size_or_host():
    labels = np.array([0] * 7 + [1] * 3 + [3] * 11, np.int32)
    rows = balanced_rows(labels, 10, 8)
    np.testing.assert_array_equal(rows, balanced_rows(labels, 20, 4))
    hosts = [
        balanced_rows(labels, 10, 8, first_row=4 * host, num_rows=4).reshape(10, 4)
        for host in range(2)
    ]
    np.testing.assert_array_equal(rows.reshape(10, 8), np.concatenate(hosts, axis=1))


def test_a_stream_that_does_not_fit_into_memory_cannot_be_balanced():
    source = streams.StreamSource(None, "train", 8, ("a", "b"), shuffle_buffer=4)
    with pytest.raises(ValueError, match="class_balanced.*--dataset=folder"):
        pipeline.create_train_batches(
            source, policy=IDENTITY, batch_size=4, image_size=8, seed=0, class_balanced=True
        )


@pytest.mark.slow
def test_a_stream_is_balanced_like_files(tmp_path):
    """Every batch has as many images of each class, from any step and over hosts."""
    prepared_tfds.write_two_greys(tmp_path)
    builder = streams.prepared_builder("two_greys", str(tmp_path))
    source = streams.stream_of(builder, "train")
    labels = source.in_memory()[1]
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 8

    def take(num_steps, **options):
        batches = pipeline.create_train_batches(
            source, policy=IDENTITY, batch_size=8, image_size=8, seed=1, class_balanced=True,
            **options,
        )  # fmt: skip
        return list(batches.take(num_steps).as_numpy_iterator())

    batches = take(3)
    for batch in batches:
        assert np.bincount(batch["label"]).tolist() == [4, 4]
        bright = batch["image"].mean(axis=(1, 2, 3, 4)) > 100
        np.testing.assert_array_equal(bright, batch["label"] == 1)
    assert_equal(take(1, start_step=2), batches[2:])
    hosts = [take(3, host=host, num_hosts=2, num_replicas=2) for host in (0, 1)]
    for step, batch in enumerate(batches):
        joined = np.concatenate([host[step]["image"] for host in hosts])
        np.testing.assert_array_equal(joined, batch["image"])


def create(source, num_steps, *, threads=None, **options):
    batches = pipeline.create_train_batches(
        source, policy=SIMCLR, batch_size=8, image_size=16, seed=1, **options
    )
    if threads:
        chosen = tf.data.Options()
        chosen.threading.private_threadpool_size = threads
        chosen.autotune.enabled = threads > 1
        batches = batches.with_options(chosen)
    return [{name: x.numpy() for name, x in batch.items()} for batch in batches.take(num_steps)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@pytest.mark.parametrize("balanced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches_of_files_are_the_same_for_any_threads_replicas_and_start(photos, balanced):
    options = {"class_balanced": balanced, "blur_probability": 0.5}
    batches = create(photos, 5, **options)
    assert batches[0]["image"].shape == (8, 2, 16, 16, 3)
    for threads in (16,) if balanced else (1, 16):
        assert_equal(create(photos, 5, threads=threads, **options), batches)
    assert_equal(create(photos, 2, start_step=3, **options), batches[3:])
    parts = create(photos, 8, num_replicas=4, **options)
    whole = [
        {name: np.concatenate([part[name] for part in parts[4 * step :][:4]]) for name in parts[0]}
        for step in range(2)
    ]
    assert_equal(whole, batches[:2])
    if balanced:
        assert all(np.bincount(batch["label"]).tolist() == [4, 4] for batch in batches)


def test_training_crops_of_files_are_those_of_the_whole_image(photos):
    """The same crops, through the compiled loop over decoded images of one shape."""
    image = decode.decode_image(tf.io.read_file(photos.paths[1])).numpy()
    one = sources.FileSource(photos.paths[1:2], photos.labels[1:2], photos.class_names)
    array = sources.ArraySource(image[None], photos.labels[1:2], photos.class_names)
    views = [
        next(
            iter(
                pipeline.create_train_batches(
                    source, policy=IDENTITY, batch_size=1, image_size=16, seed=0, num_views=6
                )
            )
        )["image"].numpy()
        for source in (one, array)
    ]
    assert np.abs(views[0].astype(int) - views[1]).max() <= 1


# Evaluation crops.


@pytest.mark.parametrize("shape", [(60, 91), (91, 60), (64, 64)])
def test_resize_then_crop_is_the_centre_of_the_resized_image(shape):
    image = PHOTO[: shape[0], : shape[1]]
    scale = (32 + 8) / min(shape)
    sides = [int(scale * side + 1e-6) for side in shape]
    resized = tf.image.resize(image, sides).numpy()
    top, left = ((side - 32 + 1) // 2 for side in sides)
    result = crops.eval_crop(image, 32, method="resize_then_crop", padding=8)
    expected = resized[top : top + 32, left : left + 32].astype(np.uint8)  # Without the fraction.
    np.testing.assert_array_equal(result, expected)


def test_crop_then_resize_and_crop_then_distort():
    image = PHOTO[:60, :91]
    result = crops.eval_crop(image, 32, method="crop_then_resize", padding=8)
    # 60 x 32 / 40 = 48 pixels, from (60 - 48 + 1) // 2 and (91 - 48 + 1) // 2.
    expected = tf.cast(tf.image.resize(image[6:54, 22:70], [32, 32]), tf.uint8)
    np.testing.assert_array_equal(result, expected)
    result = crops.eval_crop(image, 32, method="crop_then_distort", padding=8)
    expected = tf.image.resize(tf.image.central_crop(image, 0.8), [32, 32])
    np.testing.assert_array_equal(result, tf.cast(expected, tf.uint8))


@pytest.mark.parametrize("method", ["auto", "identity", "crop_then_resize"])
def test_without_padding_an_image_of_the_right_size_stays_as_it_is(method):
    image = PHOTO[:32, :32]
    np.testing.assert_array_equal(crops.eval_crop(image, 32, method=method, padding=0), image)


def test_the_crop_method_reaches_the_evaluation(photos):
    def evaluate(**options):
        batches = pipeline.create_eval_batches(photos, batch_size=12, image_size=16, **options)
        return next(iter(batches))["image"].numpy()

    made = [evaluate(crop_method=method) for method in crops.EVAL_CROP_METHODS[:-1]]
    made.append(evaluate(crop_method="resize_then_crop", crop_padding=2))
    for index, images in enumerate(made):
        assert all(np.any(images != other) for other in made[:index])
    with pytest.raises(tf.errors.InvalidArgumentError, match="identity needs images of 16x16"):
        evaluate(crop_method="identity")
    with pytest.raises(ValueError, match="Unknown eval_crop_method 'middle'"):
        evaluate(crop_method="middle")


# Whitening.


def test_whitening_is_mean_and_deviation_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 200, (10, 8, 8, 3)).astype(np.uint8)
    images[..., 2] = 51
    source = sources.ArraySource(images, np.zeros(10, np.int32), ("only",))
    batches = pipeline.create_eval_batches(source, batch_size=4, image_size=8)
    mean, std = whitening.measure_whitening(batches)
    pixels = images.astype(np.float64).reshape(-1, 3) / 127.5 - 1
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(std[:2], pixels.std(axis=0)[:2], atol=1e-4)
    assert std[2] == whitening.SMALLEST_STD  # One level everywhere, not infinite contrast.


def write_photos(root, split, count):
    for index in range(count):
        folder = root / split / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTO[10 * index :][:24, :24]).save(folder / f"{index}.png")


def run_on_photos(root, *arguments, **options):
    command.run_inside(
        *command.SHORT, "--mode=pretrain", "--dataset=folder", f"--data_dir={root / 'data'}",
        f"--model_dir={root / 'run'}", "--batch_size=8", "--image_size=16",
        "--knn_interval_epochs=0", "--augmentation_type=identity", "--noonline_probe",
        *arguments, **options,
    )  # fmt: skip


def whitening_in(root):
    import keras

    encoder = keras.models.load_model(root / "run/pretrain/encoder.keras")
    layers = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Normalization)]
    return [(np.ravel(x.mean), np.sqrt(np.ravel(x.variance))) for x in layers]


def test_a_folder_is_whitened_by_what_was_measured_once(tmp_path, capsys):
    for split in ("train", "test"):
        write_photos(tmp_path / "data", split, 8)
    run_on_photos(tmp_path)
    printed = re.search(r"--whitening_mean=(\S+) --whitening_std=(\S+)", capsys.readouterr().out)
    expected = [[float(x) for x in part.split(",")] for part in printed.groups()]
    (found,) = whitening_in(tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # A resumed run does not measure again, even if the folder has changed.
    write_photos(tmp_path / "data", "train", 16)
    run_on_photos(tmp_path, "--pretrain_epochs=2", "--override_flags")
    np.testing.assert_allclose(whitening_in(tmp_path)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "given"])
def test_whitening_can_be_given_or_left_out(tmp_path, kind):
    for split in ("train", "test"):
        write_photos(tmp_path / "data", split, 8)
    given = ["--whitening_mean=0.1,0,-0.1", "--whitening_std=0.5,0.25,0.5"]
    given = given if kind == "given" else []
    run_on_photos(tmp_path, "--pretrain_epochs=0", f"--whitening={kind}", *given)
    found = whitening_in(tmp_path)
    if kind == "none":
        assert found == []
    else:
        np.testing.assert_allclose(found[0], [(0.1, 0, -0.1), (0.5, 0.25, 0.5)], atol=1e-6)


# Broken images, through the command.


def test_broken_images_stop_the_run_or_are_skipped_and_listed(tmp_path, capsys):
    for split in ("train", "test"):
        write_photos(tmp_path / "data", split, 10)
    broken = tmp_path / "data/test/cat/1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"cannot be decoded.*--skip_broken(.|\n)*{broken}"):
        run_on_photos(tmp_path, "--whitening=none")
    (tmp_path / "data/train/dog/0.png").write_bytes(b"%PDF-1.7")
    capsys.readouterr()
    run_on_photos(
        tmp_path, "--whitening=none", "--skip_broken_images", "--pretrain_epochs=0",
        f"--model_dir={tmp_path / 'other'}",
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "9 training and 9 test examples" in output
    assert (
        f"Skipped 1 test files that cannot be read as images:\n  {broken}: cannot be decoded"
        in output
    )
    assert "train/dog/0.png: starts with b'%PDF-1.7'" in output


# Blur.


def test_blur_is_drawn_for_each_view_with_its_probability():
    images = np.zeros([64, 4, 4, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(64, np.int32), ("only",))
    options = {"policy": SIMCLR, "batch_size": 64, "image_size": 4, "seed": 0, "num_views": 8}
    batches = pipeline.create_train_batches(source, blur_probability=0.3, **options)
    sigma = next(iter(batches))["blur_sigma"].numpy()
    assert sigma.shape == (64, 8) and sigma.dtype == np.float32
    # 512 draws: the share within five deviations, sigma uniform in [0.1, 2].
    assert abs(np.mean(sigma > 0) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 512)
    drawn = sigma[sigma > 0]
    assert drawn.min() >= 0.1 and drawn.max() <= 2.0
    assert abs(drawn.mean() - 1.05) < 5 * 0.55 / np.sqrt(len(drawn))
    plain = pipeline.create_train_batches(source, **options)
    assert "blur_sigma" not in next(iter(plain))


def test_only_views_with_a_sigma_are_blurred_and_a_plain_grey_stays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 2, 30, 30, 3)).astype(np.uint8)
    sigma = np.array([[0.0, 1.5], [0.5, 0.0]], np.float32)
    blurred = blur.blurred_images({"image": images, "blur_sigma": sigma}).numpy()
    for row, view in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(blurred[row, view], images[row, view].astype(np.float32))
    deviation = [blurred[0, 1].std(), blurred[1, 0].std(), images[0, 1].std()]
    assert deviation == sorted(deviation) and deviation[0] < 0.5 * deviation[2]
    gray = np.full([1, 1, 30, 30, 3], 127, np.uint8)
    blurred = blur.blurred_images({"image": gray, "blur_sigma": np.ones([1, 1], np.float32)})
    np.testing.assert_allclose(blurred, gray, atol=0.51)  # Also at the border.


@pytest.mark.parametrize(
    "augmentation,is_blurred",
    [("simclr", True), ("stacked_randaugment", True), ("autoaugment", False), ("identity", False)],
)
def test_only_simclr_and_stacked_randaugment_end_with_a_blur(augmentation, is_blurred):
    source = sources.ArraySource(np.zeros([4, 8, 8, 3], np.uint8), np.zeros(4, np.int32), ("only",))
    batches = pipeline.create_train_batches(
        source,
        policy=shared_policy(augmentation),
        batch_size=4,
        image_size=8,
        seed=0,
        blur_probability=0.5,
    )
    assert ("blur_sigma" in batches.element_spec) == is_blurred

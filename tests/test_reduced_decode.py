"""JPEG files decoded at a half, a quarter or an eighth of their size, for crops that are shrunk."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from supcon_tf.augment import policies
from supcon_tf.data import crops, decode, pipeline, reduced_decode, sources

PHOTO = Image.fromarray(load_sample_images().images[0])  # 640 x 427
ORIENTATION_TAG = 0x0112


def encode(image=PHOTO, kind="JPEG", orientation=None, **options):
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION_TAG] = orientation
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


def decoded_by_pillow(encoded, ratio):
    """Pillow's `draft` asks libjpeg for a reduced size too."""
    image = Image.open(io.BytesIO(encoded))
    image.draft("RGB", (image.width // ratio, image.height // ratio))
    return np.array(image.convert("RGB")).astype(int)


def decode_box(encoded, box, least_size, **options):
    """The pixels of one crop, decoded reduced, and the shape of what was decoded."""
    image, (inside,) = decode.decode_crops(
        tf.constant(encoded), lambda shape: tf.constant([box]), least_size=least_size, **options
    )
    top, left, height, width = inside.numpy()
    assert 0 <= top <= top + height <= image.shape[0]
    assert 0 <= left <= left + width <= image.shape[1]
    return image.numpy()[top : top + height, left : left + width].astype(int), image.shape


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("least_size,ratio", [(300, 1), (200, 2), (100, 4), (50, 8), (1, 8)])
def test_the_pixels_are_those_of_libjpeg_at_the_smallest_size_that_is_enough(
    least_size, ratio, subsampling
):
    encoded = encode(quality=90, subsampling=subsampling)
    whole = decoded_by_pillow(encoded, ratio)
    found, _ = decode_box(encoded, [0, 0, 427, 640], least_size)
    assert found.shape == (427 // ratio, 640 // ratio, 3)
    # Of whole images, TensorFlow and Pillow compute the cosines with other rounding.
    np.testing.assert_allclose(found, whole[: len(found)], atol=6 if ratio == 1 else 2)
    if ratio > 1:
        _, shape = decode_box(encoded, [8, 16, 416, 400], least_size)
        assert shape[1] < 0.7 * whole.shape[1]  # Only what the crop covers.


@pytest.mark.parametrize("options", [{"subsampling": value} for value in (0, 1, 2)], ids=str)
@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_crop_has_the_pixels_of_the_whole_reduced_image(ratio, options):
    photo = PHOTO.crop([0, 0, 301, 203])  # Neither side is a multiple of the ratio.
    encoded = encode(photo, quality=90, **options)
    whole = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio).numpy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        sides = rng.integers(8 * ratio, [204, 302])
        start = rng.integers(0, [204, 302] - sides)
        boxes = tf.constant([[*start, *sides]], tf.int32)
        image, (inside,) = decode.decode_crops(
            encoded, lambda shape, boxes=boxes: boxes, least_size=min(sides) // ratio
        )
        small = reduced_decode.reduced_boxes(boxes, tf.constant([203, 301]), ratio)[0].numpy()
        (top, left, height, width), (row, column, *_) = small, inside.numpy()
        np.testing.assert_array_equal(
            image[row : row + height, column : column + width],
            whole[top : top + height, left : left + width],
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_of_a_turned_photograph_shows_the_same_place(orientation):
    """Of a slope of colors, whose sides are not multiples of the ratio."""
    rows, columns = np.mgrid[:207, :303]
    slope = np.stack([rows, columns / 1.5, 0 * rows], axis=2).astype(np.uint8)
    encoded = encode(Image.fromarray(slope), orientation=orientation, quality=98, subsampling=0)
    whole = decode.decode_image(tf.constant(encoded)).numpy().astype(float)
    asked, rng = [], np.random.default_rng(0)
    for _ in range(5):
        sides = rng.integers(64, whole.shape[:2])
        start = rng.integers(0, whole.shape[:2] - sides + 1)

        def boxes_of(shape, box=(*start, *sides)):
            asked.append(tuple(shape.numpy()))
            return tf.constant([box], tf.int32)

        image, (inside,) = decode.decode_crops(tf.constant(encoded), boxes_of, least_size=8)
        row, column, height, width = inside.numpy()
        found = image.numpy()[row : row + height, column : column + width].astype(float)
        assert found.shape[0] == pytest.approx(sides[0] / 8, abs=1)
        expected = whole[start[0] : start[0] + sides[0], start[1] : start[1] + sides[1]]
        # Half a reduced pixel is 4 levels down and 2.7 levels to the right; JPEG adds 3.
        corners = ((0, 0), (0, -1), (-1, 0), (-1, -1))
        for one, other in corners:
            block = expected[:8] if one == 0 else expected[-8:]
            block = block[:, :8] if other == 0 else block[:, -8:]
            difference = found[one, other] - block.mean(axis=(0, 1))
            assert np.abs(difference).max() <= 4 + 3
    assert set(asked) == {whole.shape[:2]}


def test_the_smallest_crop_decides():
    boxes = tf.constant([[0, 0, 400, 400], [100, 200, 120, 90]])
    for least_size, ratio in ((91, 1), (90, 1), (45, 2), (22, 4), (11, 8)):
        image, within = decode.decode_crops(encode(), lambda shape: boxes, least_size=least_size)
        assert int(within[1, 2]) == pytest.approx(120 / ratio, abs=1)
        assert image.shape[0] == pytest.approx(400 / ratio, abs=2)


@pytest.mark.parametrize("ratio", reduced_decode.RATIOS)
def test_reduced_crops_stay_in_the_image_and_move_by_at_most_half_a_pixel(ratio):
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = rng.integers(1, 100, 2)
        start = rng.integers(0, shape, (3, 2))
        sides = rng.integers(1, shape - start + 1)
        boxes = np.concatenate([start, sides], axis=1)
        found = reduced_decode.reduced_boxes(tf.constant(boxes), tf.constant(shape), ratio).numpy()
        assert (found[:, :2] >= 0).all() and (found[:, 2:] >= 1).all()
        ends = found[:, :2] + found[:, 2:]
        assert (ends <= np.maximum(shape // ratio, 1)).all()
        is_large = sides >= 2 * ratio
        exact_ends = np.minimum((start + sides) / ratio, shape // ratio)
        for exact, rounded in ((start / ratio, found[:, :2]), (exact_ends, ends)):
            assert np.abs(rounded - exact)[is_large].max(initial=0) <= 0.5
    if ratio == 1:
        np.testing.assert_array_equal(found, boxes)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_crops_that_are_not_shrunk_keep_every_pixel(kind):
    encoded, boxes = encode(kind=kind), tf.constant([[20, 30, 200, 150], [0, 100, 140, 220]])
    found = decode.decode_crops(encoded, lambda shape: boxes, least_size=71)
    exact = decode.decode_crops(encoded, lambda shape: boxes)
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_other_kinds_of_jpeg(options):
    options = dict(options)
    photo = PHOTO.convert(options.pop("mode", "RGB"))
    encoded = encode(photo, quality=90, **options)
    found, _ = decode_box(encoded, [0, 0, 424, 640], 106)
    small = np.array(PHOTO.convert("L").convert("RGB") if photo.mode == "L" else PHOTO)
    expected = small[:424].reshape(106, 4, 160, 4, 3).mean(axis=(1, 3))
    assert found.shape == (106, 160, 3) and np.abs(found - expected).mean() < 6


@pytest.mark.parametrize("max_pixels", [640 * 427 - 1, 640 * 427])
def test_the_limit_of_pixels_holds_inside_tf_data(max_pixels):
    def crop(encoded):
        box = tf.constant([[0, 0, 400, 400]])
        return decode.decode_crops(encoded, lambda _: box, max_pixels=max_pixels, least_size=50)

    images = tf.data.Dataset.from_tensors(encode()).map(crop)
    if max_pixels < 640 * 427:
        with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
            next(iter(images))
    else:
        assert next(iter(images))[0].shape == (51, 51, 3)  # With the margin.


def test_what_cannot_be_decoded_is_refused():
    box = [0, 0, 400, 400]
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        decode_box(encode(), box, 50, max_pixels=640 * 427 - 1)
    decode_box(encode(), box, 50, max_pixels=640 * 427)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_box(encode()[:5000], box, 50)


def views(folder, image_size, count=6, **options):
    source = sources.load_source("folder", "train", str(folder))
    batches = pipeline.create_train_batches(
        source, policy=policies.create_policy("identity"), batch_size=count,
        image_size=image_size, seed=3, **options,
    )  # fmt: skip
    return next(iter(batches))["image"].numpy().astype(int)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs of 640 x 427, as JPEG with and without an orientation, and as PNG."""
    folder = tmp_path_factory.mktemp("photographs")
    for split in ("train", "test"):
        for label in range(2):
            (folder / split / str(label)).mkdir(parents=True)
            for index, kind in enumerate(("jpg", "jpg", "png")):
                encoded = encode(
                    Image.fromarray(load_sample_images().images[label]),
                    "PNG" if kind == "png" else "JPEG",
                    orientation=3 if index else None,
                )
                (folder / split / str(label) / f"{index}.{kind}").write_bytes(encoded)
    return folder


def test_the_views_of_a_folder_differ_little(photographs):
    exact, fast = (views(photographs, 32, fast_decode=value) for value in (False, True))
    assert exact.shape == fast.shape == (6, 2, 32, 32, 3)
    assert 0 < np.abs(exact - fast).mean() < 12
    # Less than what the exact views differ by from those of the image before.
    assert np.abs(exact - fast).mean() < 0.3 * np.abs(exact - np.roll(exact, 1, axis=0)).mean()


def test_details_are_smoothed_before_they_are_shrunk():
    """A view of the reduced image is closer to the averages of the original pixels."""
    encoded, box = encode(quality=95), tf.constant([[8, 64, 400, 400]])
    means = np.array(PHOTO)[8:408, 64:464].reshape(50, 8, 50, 8, 3).mean(axis=(1, 3))
    errors = []
    for least_size in (None, 50):
        image, inside = decode.decode_crops(encoded, lambda shape: box, least_size=least_size)
        view = crops.crop_and_resize(image, inside[0], 50, compat="pillow")
        errors.append(np.abs(view.numpy() - means).mean())
    assert errors[1] < 0.2 * errors[0]


def test_images_that_are_not_shrunk_give_the_same_views(photographs):
    exact, fast = (views(photographs, 224, fast_decode=value) for value in (False, True))
    np.testing.assert_array_equal(exact, fast)  # Twice 224 is more than 427.


def test_a_crop_of_the_reduced_image_is_the_crop_of_a_smooth_image():
    """Of a slope of colors, both ways give the same view up to rounding."""
    slope = np.add.outer(np.arange(400), np.arange(600)) * 250 / 1000
    image = Image.fromarray(np.repeat(slope[..., None], 3, axis=2).astype(np.uint8))
    encoded = encode(image, quality=98, subsampling=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(130, 400, 2)
        box = [rng.integers(0, 401 - height), rng.integers(0, 601 - width), height, width]
        made = []
        for least_size in (None, 32):
            whole, inside = decode.decode_crops(
                encoded, lambda shape, box=box: tf.constant([box], tf.int32), least_size=least_size
            )
            made.append(crops.crop_and_resize(whole, inside[0], 32, compat="pillow"))
        np.testing.assert_allclose(made[0].numpy().astype(int), made[1], atol=3)

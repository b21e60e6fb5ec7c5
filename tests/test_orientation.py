"""Photographs are turned as viewers turn them, by the EXIF header, in every way of decoding."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from supcon_tf.data import decode, image_header

# Smooth, so that the JPEG's colors survive; no symmetry, so that no turn is like another.
ROWS, COLUMNS = np.mgrid[0:40, 0:56]
PICTURE = Image.fromarray(np.stack([5 * ROWS, 4 * COLUMNS, 2 * (ROWS + COLUMNS)], -1).astype("u1"))
ORIENTATIONS = range(1, 9)


def encode(orientation, kind, **options):
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # An entry before that of the orientation.
    exif[image_header.ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    PICTURE.save(file, kind, exif=exif, **options)
    return file.getvalue()


def as_a_viewer_shows(encoded):
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


@pytest.mark.parametrize("kind,options", [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {})])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_turned_as_pillow_turns_it(orientation, kind, options):
    encoded = encode(orientation, kind, **options)
    expected = as_a_viewer_shows(encoded)
    decoded = decode.decode_image(tf.constant(encoded)).numpy()
    assert decoded.shape == expected.shape == ((56, 40, 3) if orientation > 4 else (40, 56, 3))
    np.testing.assert_allclose(decoded.astype(int), expected, atol=6)  # libjpeg's two transforms


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_crop_is_that_of_the_turned_image(orientation, kind):
    encoded = encode(orientation, kind)
    whole = decode.decode_image(tf.constant(encoded)).numpy()
    height, width = whole.shape[:2]
    boxes = [[3, 5, 20, 9], [10, 2, 8, 30]]

    def boxes_of(shape):
        np.testing.assert_array_equal(shape, [height, width])
        return tf.constant(boxes)

    image, within = decode.decode_crops(tf.constant(encoded), boxes_of)
    for (top, left, h, w), (row, column, *_) in zip(boxes, within.numpy(), strict=True):
        np.testing.assert_array_equal(
            image[row : row + h, column : column + w], whole[top : top + h, left : left + w]
        )


def with_exif_after(encoded, number):
    """The JPEG with other application segments before the one that holds EXIF."""
    segment = b"\xff\xe2" + (2 + 300).to_bytes(2, "big") + bytes(300)
    return encoded[:2] + number * segment + encoded[2:]


def little_endian(orientation):
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00"
    return tiff + orientation.to_bytes(2, "little") + bytes(6)


def with_tiff(tiff):
    file = io.BytesIO()
    PICTURE.save(file, "JPEG")
    segment = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    return file.getvalue()[:2] + segment + file.getvalue()[2:]


@pytest.mark.parametrize(
    "encoded,expected",
    [
        (with_exif_after(encode(6, "JPEG"), 3), 6),
        (with_exif_after(encode(6, "JPEG"), 0), 6),
        (with_tiff(little_endian(8)), 8),
        (with_tiff(little_endian(0)), 1),
        (with_tiff(little_endian(9)), 1),
        (with_tiff(b""), 1),
        (with_tiff(b"II*\x00\xff\xff\xff\xff"), 1),
        (with_tiff(b"MM\x00*\x00\x00\x00\x08\xff\xff"), 1),
        (with_tiff(little_endian(6)[:15]), 1),
        (encode(6, "JPEG")[:30], 1),
        (encode(6, "PNG")[:50], 1),
        (b"\xff\xd8\xff\xe1\x00\x00" + bytes(20), 1),
        (b"GIF89a", 1),
    ],
)
def test_a_header_is_read_wherever_it_stands_and_a_damaged_one_counts_as_none(encoded, expected):
    assert image_header.orientation(tf.constant(encoded)).numpy() == expected
    graph = tf.function(image_header.orientation)
    assert graph(tf.constant(encoded)).numpy() == expected


def test_a_damaged_header_never_fails():
    rng = np.random.default_rng(0)
    orientation = tf.function(image_header.orientation)
    for kind in ("JPEG", "PNG"):
        good = bytearray(encode(6, kind)[:90])
        for _ in range(300):
            damaged = bytearray(good)
            for place in rng.integers(8, len(good), 3):
                damaged[place] = rng.integers(256)
            assert 1 <= orientation(tf.constant(bytes(damaged))).numpy() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(kind):
    encoded = tf.constant(encode(1, kind))
    decode.decode_image(encoded, max_pixels=40 * 56)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        decode.decode_image(encoded, max_pixels=40 * 56 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        decode.decode_crops(
            encoded, lambda shape: tf.constant([[0, 0, 4, 4]]), max_pixels=40 * 56 - 1
        )

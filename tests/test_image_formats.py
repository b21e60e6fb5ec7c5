"""The formats that people's folders contain become what a viewer shows, in training and after."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from supcon_tf.augment import policies
from supcon_tf.data import decode, image_files, pillow_decode, pipeline, sources

PHOTO = load_sample_images().images[0][:48, :64]
ROTATED = 6  # EXIF: a viewer turns the image by 90 degrees.


def encoded(kind, image=None, **options):
    image = Image.fromarray(PHOTO) if image is None else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif():
    header = Image.Exif()
    header[0x0112] = ROTATED
    return header


def frames(kind, **options):
    others = [Image.fromarray(PHOTO[::-1])]
    return encoded(kind, save_all=True, append_images=others, **options)


def transparent():
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), [48, 1])[..., None]
    return Image.fromarray(np.concatenate([PHOTO, alpha], axis=-1))


PALETTE = Image.fromarray(PHOTO).quantize(32)
FILES = {
    "photo.webp": encoded("WEBP", lossless=True),
    "lossy.webp": encoded("WEBP", quality=80),
    "turned.webp": encoded("WEBP", lossless=True, exif=exif()),
    "alpha.webp": encoded("WEBP", transparent(), lossless=True, exact=True),
    "moving.webp": frames("WEBP", lossless=True),
    "photo.bmp": encoded("BMP"),
    "palette.bmp": encoded("BMP", PALETTE),
    "one_bit.bmp": encoded("BMP", Image.fromarray(PHOTO).convert("1")),
    "photo.gif": encoded("GIF"),
    "moving.gif": frames("GIF"),
    "palette.png": encoded("PNG", PALETTE),
    "clear.png": encoded("PNG", PALETTE, transparency=3),
    "turned.JPG": encoded("JPEG", quality=95, exif=exif()),
    "turned.png": encoded("PNG", exif=exif()),
    "cmyk.jpeg": encoded("JPEG", Image.fromarray(PHOTO).convert("CMYK"), quality=95),
    "фото 写真.webp": encoded("WEBP", lossless=True),
}


def as_a_viewer_shows(data):
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_every_format_becomes_what_a_viewer_shows(name):
    """JPEG decoders may differ by a few levels in chroma; all else is exact."""
    atol = 3 if name.lower().endswith(("jpg", "jpeg")) else 0
    expected = as_a_viewer_shows(FILES[name])
    found = decode.decode_image(FILES[name], any_format=True).numpy()
    np.testing.assert_allclose(found.astype(int), expected, atol=atol)
    np.testing.assert_array_equal(decode.decode_whole(tf.constant(FILES[name])), found)
    if pillow_decode.pillow_format(FILES[name]):
        stored = Image.open(io.BytesIO(FILES[name])).size[::-1]
        assert pillow_decode.stated_size(FILES[name]) == stored


def test_16_bits_keep_the_upper_8():
    levels = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)
    found = decode.decode_image(encoded("PNG", Image.fromarray(levels)), any_format=True).numpy()
    np.testing.assert_array_equal(found, np.repeat((levels >> 8)[..., None], 3, axis=-1))


def test_a_header_that_states_too_many_pixels_is_refused_without_decoding():
    for kind in ("BMP", "GIF", "WEBP"):
        with pytest.raises(ValueError, match="too large"):
            decode.decode_image(encoded(kind), max_pixels=1_000, any_format=True)
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode.decode_image(encoded(kind)[:40], any_format=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of all formats in one class, and of PNG twins in the other."""
    root = tmp_path_factory.mktemp("mixed")
    for name, data in FILES.items():
        for split in ("train", "test"):
            for class_name in ("any", "png"):
                (root / split / class_name).mkdir(parents=True, exist_ok=True)
            (root / split / "any" / name).write_bytes(data)
            twin = encoded("PNG", Image.fromarray(as_a_viewer_shows(data)))
            (root / split / "png" / f"{name}.png").write_bytes(twin)
    for junk in (".DS_Store", "._photo.webp", "Thumbs.db", "desktop.ini"):
        (root / "train/any" / junk).write_bytes(b"junk")
    return root


@pytest.mark.slow
def test_training_and_evaluation_see_the_same_pixels_as_of_png_twins(mixed):
    splits = sources.load_splits("folder", str(mixed))
    assert sorted(splits.train.ignored) == [".DS_Store", "._photo.webp", "Thumbs.db", "desktop.ini"]
    assert splits.train.needs_pillow and splits.train.num_examples == 2 * len(FILES)
    half = len(FILES)
    order = np.argsort([path.removesuffix(".png") for path in splits.test.paths[half:]])
    batches = pipeline.create_eval_batches(splits.test, batch_size=2 * half, image_size=32)
    images = next(iter(batches))["image"].numpy().astype(int)
    np.testing.assert_allclose(images[:half], images[half:][order], atol=4)

    def first_batch(rows):
        batches = pipeline.create_train_batches(
            splits.train.choose(rows), policy=policies.create_policy("identity"),
            batch_size=half, image_size=16, seed=0,
        )  # fmt: skip
        return next(iter(batches))["image"].numpy().astype(int)

    np.testing.assert_array_equal(first_batch(np.arange(half)), first_batch(np.arange(half)))
    gap = np.abs(first_batch(np.arange(half)) - first_batch(half + order))
    assert np.quantile(gap, 0.99) <= 8 and gap.mean() < 0.5


def test_a_folder_of_jpeg_and_png_never_needs_pillow(mixed):
    source = sources.load_source("folder", "train", str(mixed))
    png = source.choose(source.labels == 1)
    assert not image_files.check_files(png, skip_broken_images=False).needs_pillow
    with pytest.raises(ValueError, match="--data_service cannot decode WebP"):
        pipeline.create_train_batches(
            source, policy=policies.create_policy("identity"), batch_size=4, image_size=16, seed=0,
            data_service="grpc://localhost:1",
        )  # fmt: skip

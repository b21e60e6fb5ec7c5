"""Duplicates of drawn images: exact, re-encoded, mirrored and cropped; their hashes and crops."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.fft import dctn

from supcon_tf.evaluation import duplicates, image_prints


def draw(seed, side=48):
    """Random shapes in random colors."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pencil = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = rng.integers(-8, side - 8, 2).tolist()
        width, height = rng.integers(8, side // 2, 2).tolist()
        color = tuple(rng.integers(0, 256, 3).tolist())
        shape = pencil.ellipse if rng.random() < 0.5 else pencil.rectangle
        shape([left, top, left + width, top + height], fill=color)
    return np.asarray(image)


def as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


IMAGES = [draw(seed) for seed in range(40)]
COPIES = [
    (0, IMAGES[0], "same pixels"),
    (3, as_jpeg(IMAGES[3]), "resized, re-encoded or slightly changed"),
    (5, IMAGES[5][:, ::-1], "mirrored"),
    (8, IMAGES[8][3:46, 1:44], "crop of about 90% of the side"),
    (9, IMAGES[9][2:45, 4:47][:, ::-1], "mirrored, crop of about 90% of the side"),
    (11, np.asarray(Image.fromarray(IMAGES[11]).resize((31, 31))), "resized"),
]


@pytest.fixture(scope="module")
def pairs():
    prints = image_prints.print_images([*IMAGES, *(copy for _, copy, _ in COPIES)])
    return duplicates.find_duplicates(prints)


def test_every_planted_copy_is_found_and_nothing_else(pairs):
    found = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert found == [(original, 40 + index) for index, (original, _, _) in enumerate(COPIES)]
    for index, (_, _, what) in enumerate(COPIES):
        assert pairs.describe(index).startswith(what)
    assert pairs.is_exact.tolist() == [True] + 5 * [False]
    assert (pairs.similarities[pairs.is_exact] == 1).all() and (pairs.similarities > 0.9).all()


def test_neighbors_of_the_embeddings_are_candidates_that_pixels_confirm():
    """With no other candidates, the copy is found by its embedding; close strangers are not."""
    prints = image_prints.print_images([IMAGES[0], IMAGES[1], IMAGES[0][3:46, 3:46]])
    embeddings = np.ones([3, 4]) + 0.01 * np.eye(3, 4)
    found = duplicates.find_duplicates(prints, embeddings)
    assert (found.first.tolist(), found.second.tolist()) == ([0], [2])
    with pytest.raises(ValueError, match="3 images, got 2"):
        duplicates.find_duplicates(prints, embeddings[:2])


def test_pairs_must_stand_out_where_all_images_look_alike():
    """One drawing in slightly different places: only the exact copy is a duplicate."""
    big = draw(1, side=64)
    similar = [big[top : top + 56, left : left + 56] for top in (0, 2, 4) for left in (0, 2, 4)]
    found = duplicates.find_duplicates(image_prints.print_images([*similar, similar[4]]))
    assert (found.first.tolist(), found.second.tolist()) == ([4], [9])
    assert found.min_similarity > 0.95
    usual = duplicates._usual_distance(
        np.array([[0, 1], [0, 2], [0, 3]]), np.array([0.3, 0.1, 0.2]), 4
    )
    assert usual == 1.0  # Of 0, the third-nearest is at 0.3; the others have one neighbor.


def test_many_copies_are_paired_with_the_first():
    count = duplicates.MAX_PAIRED_COPIES + 5
    found = duplicates.find_duplicates(image_prints.print_images([IMAGES[0]] * count))
    assert found.first.tolist() == [0] * (count - 1)
    three = duplicates.find_duplicates(image_prints.print_images([IMAGES[0]] * 3))
    assert list(zip(three.first, three.second, strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_blank_images_are_compared_exactly_alone():
    blank = [np.full([20, 20, 3], value, np.uint8) for value in (0, 1, 255, 255)]
    prints = image_prints.print_images(blank)
    found = duplicates.find_duplicates(prints)
    assert prints.is_blank.all()
    assert (found.first.tolist(), found.second.tolist()) == ([2], [3])
    assert len(duplicates.find_duplicates(image_prints.print_images([]))) == 0


def test_the_crop_weights_reproduce_a_crop():
    """A crop of the thumbnail, averaged by hand."""
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(0, 256, [1, 32, 32, 3]).astype(np.uint8)
    whole = duplicates._crops(thumbnail)[0, 0]
    expected = thumbnail[0].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(whole, expected, atol=1e-3)
    weights = duplicates._interval_weights(1.5, 24.0)  # Parts of 1.5 pixels.
    assert weights[0, 1:3] == pytest.approx([1 / 3, 2 / 3])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_the_hash_compares_low_frequencies_with_their_median():
    gray = np.random.default_rng(0).normal(size=[3, 32, 32])
    for image, value in zip(gray, image_prints.perceptual_hash(gray).tolist(), strict=True):
        low = dctn(image, norm="ortho")[:8, :8].reshape(-1)
        bits = [low[place] > np.median(low[1:]) for place in range(64)]
        assert value == sum(1 << place for place in range(1, 64) if bits[place])
    assert image_prints.count_bits(np.array([0, 7, 2**63 + 1], np.uint64)).tolist() == [0, 3, 2]


def test_prints_tell_size_from_pixels():
    """The same bytes in another shape are another image."""
    image = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)
    prints = image_prints.print_images([image, image.reshape(8, 4, 3), image.copy()])
    assert prints.digests[0] == prints.digests[2] != prints.digests[1]
    assert prints.sizes.tolist() == [[4, 8], [8, 4], [4, 8]]

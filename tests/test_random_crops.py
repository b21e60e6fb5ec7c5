"""Random crops are distributed as by the samplers of the published results."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from supcon_tf.augment import color, policies
from supcon_tf.data import crops, pipeline, sources, view_batches

TORCHVISION = np.load(Path(__file__).parent / "helpers/torchvision_crops.npz")
NUM_BOXES = 20_000


def draw_boxes(height, width, area_range=(0.08, 1.0), *, compat="reference", count=200, seed=0):
    draws = tf.random.stateless_uniform(
        [count, crops.num_crop_draws(compat)], [seed, 0], alg="philox"
    )
    heights, widths = tf.fill([count], height), tf.fill([count], width)
    options = {"area_range": area_range, "compat": compat}
    return crops.random_crop_boxes(draws, heights, widths, **options).numpy()


def columns(boxes, height, width):
    """What is compared: float64 [n] each."""
    top, left, h, w = boxes.T.astype(np.float64)
    return {
        "top": top, "left": left, "height": h, "width": w,
        "area": h * w / (height * width), "aspect": w / h,
    }  # fmt: skip


def largest_gap(ours, theirs):
    """The Kolmogorov-Smirnov distance of two samples."""
    points = np.unique(np.concatenate([ours, theirs]))
    return np.max(np.abs(shares_up_to(ours, points) - shares_up_to(theirs, points)))


def shares_up_to(values, points):
    return np.searchsorted(np.sort(values), points, side="right") / len(values)


def boxes_of_tensorflow(height, width, area_range, count=NUM_BOXES):
    """As the released code crops: a crop of the whole image counts as a failure, after which
    it takes the central square of the short side (preprocessing.py, _distorted_crop_window)."""

    @tf.function(autograph=False)
    def sample(seed):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3],
            tf.zeros([1, 0, 4]),
            seed=tf.stack([seed, 7]),
            min_object_covered=0.1,
            area_range=area_range,
            aspect_ratio_range=(0.75, 1.33),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], axis=0)

    seeds = tf.data.Dataset.range(count).map(lambda seed: tf.cast(seed, tf.int32))
    boxes = next(seeds.map(sample).batch(count).as_numpy_iterator()).copy()
    short = min(height, width)
    square = ((height - short + 1) // 2, (width - short + 1) // 2, short, short)
    boxes[(boxes[:, 2] == height) & (boxes[:, 3] == width)] = square
    return boxes


@pytest.mark.parametrize(
    "height,width,low", [(32, 32, 0.2), (375, 500, 0.08), (60, 200, 0.3), (8, 9, 0.08)]
)
def test_reference_crops_are_distributed_as_tensorflows(height, width, low):
    """The distance of two samples of n exceeds 2 sqrt(2 / n) with a probability of 0.0007."""
    theirs = boxes_of_tensorflow(height, width, (low, 1.0))
    ours = draw_boxes(height, width, (low, 1.0), count=NUM_BOXES)
    expected = columns(theirs, height, width)
    for name, values in columns(ours, height, width).items():
        assert largest_gap(values, expected[name]) < 2 * np.sqrt(2 / NUM_BOXES), name
    assert columns(ours, height, width)["area"].min() >= 0.1


@pytest.mark.parametrize("case", range(3))
def test_torchvision_crops_are_distributed_as_torchvisions(case):
    """Against 201 quantiles of 40,000 crops of torchvision (helpers/make_torchvision_crops.py)."""
    height, width, low, high = TORCHVISION["cases"][case]
    height, width = int(height), int(width)
    boxes = draw_boxes(height, width, (low, high), compat="torchvision", count=NUM_BOXES)
    margin = 2 * np.sqrt(1 / NUM_BOXES + 1 / TORCHVISION["num_crops"])
    for name, values in columns(boxes, height, width).items():
        theirs = TORCHVISION[f"{case}_{name}_quantiles"]
        levels = np.linspace(0, 1, len(theirs))
        # A quantile q at level p: at most p lies below q, and at least p up to it.
        assert np.all(np.mean(values[:, None] < theirs - 1e-6, axis=0) <= levels + margin), name
        assert np.all(np.mean(values[:, None] <= theirs + 1e-6, axis=0) >= levels - margin), name
        spread = 5 * values.std() * np.sqrt(1 / NUM_BOXES + 1 / TORCHVISION["num_crops"])
        assert abs(values.mean() - TORCHVISION[f"{case}_{name}_mean"]) < spread, name


def test_the_two_samplers_differ_in_mean_area_as_their_sources_do():
    means = {
        compat: columns(draw_boxes(500, 500, compat=compat, count=NUM_BOXES), 500, 500)["area"]
        for compat in crops.CROP_COMPATS
    }
    assert means["torchvision"].mean() - means["reference"].mean() > 0.03
    assert np.mean(means["torchvision"] < 0.1) > 0.01 > np.mean(means["reference"] < 0.1)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 64),
    width=st.integers(1, 64),
    low=st.floats(0.01, 1.0),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
    compat=st.sampled_from(crops.CROP_COMPATS),
)
def test_crop_boxes_are_inside_and_of_an_area_in_range(height, width, low, share, seed, compat):
    area_range = (low, low + share * (1.0 - low))
    boxes = draw_boxes(height, width, area_range, seed=seed, compat=compat)
    tops, lefts, heights, widths = boxes.T
    assert np.all(boxes >= 0) and np.all(heights >= 1) and np.all(widths >= 1)
    assert np.all(tops + heights <= height) and np.all(lefts + widths <= width)
    if compat == "reference":
        short = min(height, width)
        is_fallback = (heights == short) & (widths == short)
        least, most = max(low, 0.1) * height * width, area_range[1] * height * width
        assert np.all((heights * widths >= least - 1e-3) | is_fallback)
        assert np.all((heights * widths <= most + 1e-3) | is_fallback)


def test_the_crop_where_no_attempt_fits_is_central():
    """An image four times as wide as high has no crop of 3:4 to 4:3 with half the area."""
    boxes = draw_boxes(10, 41, (0.5, 1.0))
    np.testing.assert_array_equal(boxes, np.tile([0, 16, 10, 10], (200, 1)))
    boxes = draw_boxes(10, 41, (0.5, 1.0), compat="torchvision")
    np.testing.assert_array_equal(boxes, np.tile([0, 14, 10, 13], (200, 1)))
    boxes = draw_boxes(41, 10, (0.5, 1.0), compat="torchvision")
    np.testing.assert_array_equal(boxes, np.tile([14, 0, 13, 10], (200, 1)))


def test_samplers_and_areas_that_cannot_be_drawn_are_refused():
    source = sources.ArraySource(np.zeros([8, 9, 9, 3], np.uint8), np.zeros(8, np.int32), ("x",))
    options = {"policy": policies.create_policy("identity"), "batch_size": 4, "image_size": 8}
    for crop, message in (
        ({"crop_compat": "pytorch"}, "'pytorch': choose one of reference, torchvision"),
        ({"crop_area_range": (0.02, 0.1)}, "0.02 to 0.1 .*raise the upper end"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.create_train_batches(source, seed=0, **options, **crop)
        with pytest.raises(ValueError, match=message):
            dataset = tf.data.Dataset.from_tensor_slices((source.images, source.labels))
            view_batches.create_view_batches(dataset, **options, **crop)


# Rounding.


def test_reference_resizing_drops_the_fraction_in_training_and_evaluation():
    """tf.cast of tf.image.resize, as the released code has it; a whole number may come out one
    lower in a compiled loop."""
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    box = np.array([3, 5, 21, 17], np.int32)
    resized = tf.image.resize(image[3:24, 5:22], [16, 16]).numpy()
    for compat, expected in (("reference", resized), ("pillow", resized + 0.5)):
        expected = expected.astype(np.uint8)
        single = crops.crop_and_resize(image, box, 16, compat=compat).numpy()
        np.testing.assert_array_equal(single, expected)
        taps = [crops.bilinear_taps(box[k : k + 1], box[k + 2 : k + 3], 16) for k in (0, 1)]
        (batch,) = crops.resample(image[None], *taps, compat=compat).numpy()
        assert np.mean(batch != expected) < 0.01
    for method, start, side in (("crop_then_resize", 5, 20), ("auto", 2, 26)):
        resized = tf.image.resize(image[start:][:side, start:][:, :side], [16, 16]).numpy()
        rounded = resized + (0.5 if method == "auto" else 0)
        result = crops.eval_crop(tf.constant(image), 16, method=method, padding=8)
        np.testing.assert_array_equal(result, rounded.astype(np.uint8))


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_the_compat_of_the_policy_decides_how_views_are_rounded(kind):
    """An image of levels 100 and 101 in turn, enlarged, has fractions everywhere."""
    stripes = np.tile(np.array([100, 101], np.uint8)[None, :, None], (16, 8, 3))
    images, labels = np.stack([stripes] * 8), np.zeros(8, np.int32)
    means = {}
    for compat in color.COMPATS:
        policy = policies.create_policy("identity", compat=compat)
        options = {"policy": policy, "batch_size": 8, "image_size": 24, "seed": 0}
        if kind == "array":
            source = sources.ArraySource(images, labels, ("x",))
            batch = next(iter(pipeline.create_train_batches(source, **options)))["image"]
        else:
            dataset = tf.data.Dataset.from_tensor_slices((images, labels))
            batch, _ = next(iter(view_batches.create_view_batches(dataset, **options)))
        means[compat] = batch.numpy().mean()
    assert 100.3 < means["pillow"] < 100.7
    assert means["reference"] < means["pillow"] - 0.2

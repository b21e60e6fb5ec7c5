"""What is chosen from the data where no flag says it: the table and its rules."""

import dataclasses
from pathlib import Path

import pytest

from supcon_tf.data import defaults

PAGE = (Path(__file__).parent.parent / "docs" / "own_data.md").read_text()
PHOTOS = defaults.ImageFacts(num_examples=2_000, side_px=32, is_color=True, num_classes=10)
LAPTOP = defaults.Machine(has_accelerator=False, num_cpus=2, memory_bytes=8 * 10**9)


def facts(**changes):
    return dataclasses.replace(PHOTOS, **changes)


def test_small_photographs():
    assert defaults.choose(PHOTOS) == defaults.DataDefaults(
        encoder="tiny",
        resnet_depth=50,
        resnet_width=1,
        image_size=32,
        batch_size=64,
        num_views=1,
        augmentation_type="simclr",
        augmentation_magnitude=0.5,
        crop_area_range=(0.5, 1.0),
        horizontal_flip=True,
        cross_entropy_weight=1.0,
        pretrain_label_smoothing=0.0,
        normalize_embedding=True,
        pretrain_epochs=240.0,
        pretrain_base_learning_rate=0.012,
        eval_crop_method="auto",
    )


@pytest.mark.parametrize(
    ("images", "is_large_carried", "expected"),
    [
        ({"is_color": False}, True, {"cross_entropy_weight": 0.0, "horizontal_flip": False}),
        ({"is_color": False}, True, {"pretrain_epochs": 64.0, "encoder": "tiny"}),
        ({"side_px": 4}, True, {"image_size": 8}),
        ({"side_px": 63}, True, {"image_size": 32, "encoder": "tiny"}),
        ({"side_px": 64}, True, {"image_size": 64, "encoder": "resnet_v1", "resnet_depth": 18}),
        ({"side_px": 500}, True, {"image_size": 224, "crop_area_range": (0.2, 1.0)}),
        ({"side_px": 500}, True, {"pretrain_base_learning_rate": 0.004}),
        ({"side_px": 500, "is_color": False}, True, {"horizontal_flip": False}),
        ({"side_px": 500}, False, {"image_size": 48, "encoder": "tiny"}),
        ({"side_px": 32}, False, {"image_size": 32}),
        ({"num_examples": 8, "num_classes": 4}, True, {"batch_size": 8, "pretrain_epochs": 240.0}),
        ({"num_examples": 8, "num_classes": 2}, True, {"batch_size": 8, "pretrain_epochs": 480.0}),
        ({"num_examples": 50_000}, True, {"num_views": 1, "pretrain_epochs": 60.0}),
        ({"num_classes": 16}, True, {"num_views": 1, "pretrain_epochs": 240.0}),
        # A batch of 64 holds fewer than four images of each of 17 classes.
        ({"num_classes": 17}, True, {"num_views": 2, "pretrain_epochs": 120.0}),
        ({"num_classes": 0}, True, {"num_views": 2}),
        ({"is_color": False}, True, {"num_views": 2}),
        ({"side_px": 500}, True, {"num_views": 2, "pretrain_epochs": 120.0}),
        ({"side_px": 500}, False, {"num_views": 1, "pretrain_epochs": 240.0}),
        ({"num_classes": 33}, True, {"batch_size": 128, "pretrain_base_learning_rate": 0.006}),
        ({"num_classes": 101}, True, {"batch_size": 256, "pretrain_base_learning_rate": 0.003}),
        ({"num_classes": 101, "num_examples": 110}, True, {"batch_size": 110}),
        ({"num_classes": 0}, True, {"batch_size": 64}),
    ],
)
def test_rows_of_the_table(images, is_large_carried, expected):
    chosen = defaults.choose(facts(**images), is_large_carried=is_large_carried)
    assert {name: getattr(chosen, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "side_px", "expected"),
    [
        ({"encoder": "tiny"}, 500, {"image_size": 48, "crop_area_range": (0.5, 1.0)}),
        ({"encoder": "resnext"}, 50, {"image_size": 50, "resnet_depth": 50}),
        ({"encoder": "resnet_v1"}, 500, {"image_size": 224, "resnet_depth": 50}),
        ({"batch_size": 200}, 32, {"num_views": 1, "pretrain_epochs": 480.0}),
        ({"num_views": 2}, 32, {"pretrain_epochs": 120.0}),
        ({"num_views": 3}, 32, {"pretrain_epochs": 120.0}),
        ({"num_views": 1, "cross_entropy_weight": 0.0}, 32, {"pretrain_epochs": 240.0}),
        ({"cross_entropy_weight": 0.0}, 32, {"num_views": 2, "pretrain_epochs": 120.0}),
        ({"batch_size": 128}, 32, {"pretrain_base_learning_rate": 0.006}),
        ({"batch_size": 16}, 32, {"pretrain_base_learning_rate": 0.012, "pretrain_epochs": 30.0}),
        ({"image_size": 20, "cross_entropy_weight": 0.0}, 32, {"encoder": "tiny"}),
    ],
)
def test_what_is_given_is_kept_and_the_rest_fits_it(given, side_px, expected):
    chosen = defaults.choose(facts(side_px=side_px), given)
    wanted = given | expected
    assert {name: getattr(chosen, name) for name in wanted} == wanted


def test_many_small_photographs_have_a_row_of_their_own():
    few = defaults.choose(facts(num_examples=defaults.MANY_EXAMPLES - 1))
    many = defaults.choose(facts(num_examples=defaults.MANY_EXAMPLES))
    changed = {
        "cross_entropy_weight": 0.3,
        "pretrain_label_smoothing": 0.1,
        "normalize_embedding": False,
        "pretrain_base_learning_rate": 0.024,
    }
    assert many == dataclasses.replace(few, pretrain_epochs=many.pretrain_epochs, **changed)
    assert many.texts()["pretrain_label_smoothing"] == "0.1"
    assert "pretrain_label_smoothing" not in few.texts()


@pytest.mark.parametrize(
    ("images", "given", "options"),
    [
        ({"num_classes": 17}, {}, {}),  # With two views.
        ({}, {"num_views": 2}, {}),
        ({}, {"cross_entropy_weight": 0.0, "num_views": 1}, {}),  # SupCon alone.
        ({}, {"encoder": "resnext"}, {}),
        ({"is_color": False}, {}, {}),
        ({"side_px": 64}, {}, {"is_large_carried": False}),
        ({}, {}, {"is_many_measured": False}),
    ],
)
def test_other_trainings_keep_the_settings_that_they_were_measured_with(images, given, options):
    many = defaults.choose(facts(num_examples=10_000, **images), given, **options)
    few = defaults.choose(facts(**images), given, **options)
    assert many == dataclasses.replace(few, pretrain_epochs=many.pretrain_epochs)


def test_cross_entropy_alone_follows_the_same_row():
    given = {"cross_entropy_weight": 0.0, "num_views": 1}
    many = defaults.choose(facts(num_examples=10_000), given, is_cross_entropy=True)
    assert many.pretrain_label_smoothing == 0.1 and not many.normalize_embedding
    few = defaults.choose(PHOTOS, given, is_cross_entropy=True)
    assert few.pretrain_label_smoothing == 0 and few.normalize_embedding


def test_texts_are_flags_and_leave_out_a_depth_that_does_nothing():
    texts = defaults.choose(PHOTOS).texts()
    assert texts["crop_area_range"] == "0.5,1.0" and texts["pretrain_epochs"] == "240"
    assert texts["horizontal_flip"] == "true" and "resnet_depth" not in texts
    assert defaults.choose(facts(side_px=200)).texts()["resnet_depth"] == "18"


def test_a_machine_carries_the_large_network_or_the_reason_is_said():
    images = facts(side_px=256)
    chosen = defaults.choose(images)
    # 120 epochs x 2,000 images x 2 views x 10.9 GFLOP / (2 x 50 GFLOP/s) = 14.5 hours.
    reason = defaults.why_not_large(images, LAPTOP, chosen)
    assert "--image_size=224 would train for about 15 hours on 2 CPU cores" in reason
    assert defaults.why_not_large(images, LAPTOP, chosen, longest_hours=15) is None
    server = dataclasses.replace(LAPTOP, num_cpus=16)
    assert defaults.why_not_large(images, server, chosen) is None
    with_gpu = dataclasses.replace(LAPTOP, has_accelerator=True)
    assert defaults.why_not_large(images, with_gpu, chosen) is None
    # 64 x 2 views of 224 x 224 pixels x 744 bytes = 4.8 GB.
    full = dataclasses.replace(server, memory_bytes=4 * 10**9)
    assert "5 GB of memory, and 4 GB are free" in defaults.why_not_large(images, full, chosen)
    unknown = dataclasses.replace(server, memory_bytes=None)
    assert defaults.why_not_large(images, unknown, chosen) is None


@pytest.mark.parametrize(
    "num_examples,batch_size,expected",
    [
        (50_000, 64, 30),  # 23,437 steps: no floor is needed.
        (4_267, 64, 30),  # 30 epochs are 2,000 steps.
        (2_000, 64, 64),
        (2_000, 256, 240),  # 256 epochs would be 2,000 steps.
        (20, 8, 240),
    ],
)
def test_epochs_reach_the_floor_on_steps_within_a_limit(num_examples, batch_size, expected):
    epochs = defaults.pretrain_epochs("cifar10", num_examples, batch_size)
    assert epochs == expected
    steps = epochs * num_examples / batch_size
    assert steps >= defaults.MIN_STEPS or epochs == defaults.MAX_EPOCHS


def test_the_digits_keep_their_epochs():
    assert defaults.pretrain_epochs("digits", 1437, 64) == 30


def cells_of(row):
    depth = f", depth {row.resnet_depth}" if row.encoder == "resnet_v1" else ""
    low, high = row.crop_area_range
    return (
        f"`{row.encoder}`{depth}", row.largest_px, row.num_views,
        f"`{row.augmentation_type}`, {row.augmentation_magnitude:g}", f"{low},{high}",
        f"{row.cross_entropy_weight:g}", f"{row.peak_learning_rate:g}", f"{row.min_steps:,}",
    )  # fmt: skip


def test_the_page_shows_the_table():
    for name, row in defaults.TABLE.items():
        assert f"| {name} | {' | '.join(map(str, cells_of(row)))} |" in PAGE
        assert row.eval_crop_method == "auto"
        assert row.normalize_embedding == (row.label_smoothing == 0)
    (some, small), (more, medium), (_, large) = defaults.BATCH_SIZE_BY_CLASSES
    assert f"is {small} for up to {some} classes, {medium} for up to {more}, else {large}" in PAGE
    epochs = f"twice as many: {defaults.choose(PHOTOS).pretrain_epochs:g} for 2,000 color images"
    assert f"at most {defaults.MAX_EPOCHS}." in PAGE and epochs in PAGE
    assert defaults.MIN_IMAGES_PER_CLASS == 4 and "a batch holds four images of a class" in PAGE
    smoothing = defaults.MANY_SMALL_PHOTOS.label_smoothing
    assert f"`--pretrain_label_smoothing={smoothing:g}` and `--nonormalize_embedding`" in PAGE
    assert f"than {defaults.LONGEST_HOURS:g}\n  hours" in PAGE
    assert f"estimated at {defaults.CPU_GFLOP_PER_SECOND} GFLOP/s" in PAGE

"""The picture of views, and the captions beneath them."""

import numpy as np
import pytest
from helpers.command import run_inside
from PIL import Image

from supcon_tf.augment import policies
from supcon_tf.data import pipeline, sources


# The policies of AutoAugment take long to compile; the captions below are of such a policy.
@pytest.mark.parametrize(
    "augmentation", ["simclr", pytest.param("autoaugment", marks=pytest.mark.slow)]
)
def test_preview_draws_a_grid_with_what_was_drawn(tmp_path, capsys, augmentation):
    run_inside(
        "--mode=preview", f"--model_dir={tmp_path}", "--preview_examples=3", "--num_views=3",
        f"--augmentation_type={augmentation}", "--blur_probability=0.5", "--batch_size=4",
    )  # fmt: skip
    assert f"3 images and 3 views of each to {tmp_path}/preview/preview.png" in (
        capsys.readouterr().out
    )
    picture = np.asarray(Image.open(tmp_path / "preview/preview.png"))
    assert picture.shape[1] == 12 + 4 * (160 + 12)  # 20 pixels, eight times as large.
    # In a line of tiles hardly a column between them is anything but white.
    gaps = [picture[:, 12 + column * 172 - 6] for column in range(5)]
    assert all(np.mean(gap == 255) > 0.95 for gap in gaps)
    assert (tmp_path / "preview/stage.flags").exists()


def tiles(path):
    """The tiles of the last line of a picture of 8 pixel images: [columns, 160, 160, 3]."""
    picture = np.asarray(Image.open(path))
    bottom = picture[-(160 + 4 * 14 + 12) :][:160]  # Beneath the tiles, the captions.
    return [bottom[:, left : left + 160] for left in range(12, picture.shape[1], 160 + 12)]


@pytest.mark.slow
def test_the_next_preview_may_have_other_flags(tmp_path):
    """The original stays and its view changes, whatever the title of the picture says."""
    shown = []
    for policy in ("identity", "randaugment"):
        run_inside(
            "--mode=preview", f"--model_dir={tmp_path}", "--preview_examples=1", "--num_views=2",
            f"--augmentation_type={policy}", "--augmentation_magnitude=9", "--crop_area_range=1,1",
            "--batch_size=2", "--image_size=8",
        )  # fmt: skip
        shown.append(tiles(tmp_path / "preview/preview.png"))
    assert [len(each) for each in shown] == [3, 3]
    (original, *plain), (same_original, *changed) = shown
    np.testing.assert_array_equal(same_original, original)
    assert np.ptp(original) > 100  # A digit, not the paper around it.
    assert any(np.any(one != other) for one, other in zip(plain, changed, strict=True))


def test_captions_are_those_of_the_views():
    """A view that only says "invert" is the original's negative; one that says nothing, equal."""
    colors = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3)).astype(np.uint8)
    images = np.tile(colors, [1, 8, 8, 1])  # Plain, so that crops and flips change nothing.
    source = sources.ArraySource(images, np.arange(64, dtype=np.int32), ("x",) * 64)
    policy = policies.create_policy("randaugment", num_layers=1, magnitude=10)
    options = {"policy": policy, "batch_size": 64, "image_size": 8, "seed": 0, "num_views": 8}
    batches = pipeline.create_train_batches(source, crop_area_range=(1.0, 1.0), **options)
    batch = next(iter(batches))
    views, labels = batch["image"].numpy(), batch["label"].numpy()
    captions = pipeline.describe_step(0, **options)
    seen = set()
    for row, label in enumerate(labels):
        for view, texts in enumerate(captions[row]):
            texts = [text for text in texts if text != "flip"]
            seen.add(texts[0].lower() if texts else "")
            if not texts:
                np.testing.assert_array_equal(views[row, view], images[label])
            if texts and texts[0].lower() == "invert":
                np.testing.assert_array_equal(views[row, view], 255 - images[label])
    assert {"", "invert"} <= seen and len(seen) > 10

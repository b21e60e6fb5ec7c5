"""A picture of training images and their views, labeled with the sampled operations."""

from __future__ import annotations

import io
import textwrap

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.augment import blur, policies
from supcon_tf.data import pipeline, sources
from supcon_tf.stages import choices, inputs, pretrain
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.storage import files
from supcon_tf.training import progress

# Small images are enlarged, each pixel as a square, to tiles of about this side.
TILE_PX = 160
CAPTION_LINES = 4


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes preview.png from the first batch of pretraining; runs again even if it is finished."""
    if not strategies.is_chief(strategy):
        return {}
    with StageFolder(flags, "preview", always_restarts=True) as folder:
        train_source = inputs.splits_from_flags(flags).train
        choices.choose_from_data(flags, strategy, train_source, "preview")
        train_source = inputs.training_examples_from_flags(flags, train_source)
        batch_size = min(flags.batch_size, train_source.num_examples)
        views = pretrain.views_from_flags(flags, train_source)
        with progress.waiting("preview: computing the first batch"):
            shown, originals, labels = first_views(flags, train_source, views, batch_size)
        captions = describe_views(flags, views, batch_size)
        count = min(flags.preview_examples, len(labels))
        grid = []
        for row in range(count):
            tiles = [(originals[row, 0], train_source.class_names[labels[row]])]
            tiles += [
                (view, ", ".join(texts) or "crop only")
                for view, texts in zip(shown[row], captions[row], strict=True)
            ]
            grid.append(tiles)
        folder.begin()
        path = folder.artifacts.path_to_write("preview.png")
        with progress.waiting("preview: drawing"):
            _write_picture(path, grid, title=_title(flags, views.image_size))
        folder.seal()
        views_of_each = progress.counted(flags.num_views, "view")
        print(f"preview: wrote {count} images and {views_of_each} of each to {path}")
        return {"path": path, "examples": count}


def first_views(
    flags: FlagValues, source: sources.Source, views: inputs.Views, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the views of the first images of the first batch.

    Args:
        flags: The flags of pretraining.
        source: The training images.
        views: What `pretrain.views_from_flags` returns.
        batch_size: Number of images, N.

    Returns:
        The views that the encoder receives, uint8 [N, V, S, S, 3]; the images as they are,
        uint8 [N, 1, S, S, 3]; and their labels [N, ...].
    """
    options = {"batch_size": batch_size, "image_size": views.image_size, "seed": flags.seed}
    augmented = pipeline.create_train_batches(
        source,
        policy=views.policy,
        num_views=views.num_views,
        crop_area_range=views.crop_area_range,
        crop_compat=flags.crop_compat,
        horizontal_flip=inputs.horizontal_flip_from_flags(flags),
        class_balanced=flags.class_balanced,
        blur_probability=flags.blur_probability,
        fast_decode=flags.fast_decode,
        **options,
    )
    originals = pipeline.create_train_batches(
        source,
        policy=policies.create_policy("identity"),
        num_views=1,
        crop_area_range=(1.0, 1.0),
        horizontal_flip=False,
        class_balanced=flags.class_balanced,
        **options,
    )
    with inputs.naming_broken_images(source):
        augmented, originals = next(iter(augmented)), next(iter(originals))
    shown = tf.cast(tf.clip_by_value(tf.round(blur.blurred_images(augmented)), 0, 255), tf.uint8)
    return shown.numpy(), originals["image"].numpy(), augmented["label"].numpy()


def describe_views(
    flags: FlagValues, views: inputs.Views, batch_size: int
) -> list[list[list[str]]]:
    """Returns the sampled operations of each view of `first_views`, as texts."""
    return pipeline.describe_step(
        0,
        policy=views.policy,
        batch_size=batch_size,
        image_size=views.image_size,
        seed=flags.seed,
        num_views=views.num_views,
        crop_compat=flags.crop_compat,
        horizontal_flip=inputs.horizontal_flip_from_flags(flags),
        blur_probability=flags.blur_probability,
    )


def _title(flags, size):
    shown = (
        "dataset", "augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "crop_area_range", "crop_compat", "blur_probability", "warp_probability", "seed",
    )  # fmt: skip
    values = [f"{name} {flags[name].serialize().partition('=')[2]}" for name in shown]
    return f"{size} px, " + ", ".join(values)


def _write_picture(path, grid, *, title):
    """Draws one row of tiles per example, each tile above its caption."""
    from PIL import Image, ImageDraw, ImageFont

    side = grid[0][0][0].shape[0]
    tile = side * max(1, round(TILE_PX / side))
    font = ImageFont.load_default(11)
    gap, line = 12, 14
    width = gap + len(grid[0]) * (tile + gap)
    heading = textwrap.wrap(title, max(20, width // 6))
    top = gap + line * len(heading)
    height = tile + line * CAPTION_LINES + gap
    picture = Image.new("RGB", (width, top + gap + len(grid) * height), "white")
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((gap, gap // 2), "\n".join(heading), "black", font)
    for row, tiles in enumerate(grid):
        for column, (image, text) in enumerate(tiles):
            left, upper = gap + column * (tile + gap), top + gap + row * height
            shown = Image.fromarray(np.asarray(image)).resize(
                (tile, tile), Image.Resampling.NEAREST
            )
            picture.paste(shown, (left, upper))
            lines = textwrap.wrap(text, max(12, tile // 6))[:CAPTION_LINES]
            draw.multiline_text((left, upper + tile + 2), "\n".join(lines), "black", font)
    file = io.BytesIO()
    picture.save(file, "PNG")
    with files.writing(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as output:
        output.write(file.getvalue())

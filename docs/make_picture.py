"""Draws docs/digits.png, the picture of the README, from a finished run on the digits.

    .venv/bin/python -m supcon_tf.main --mode=pretrain,linear,eval
    .venv/bin/python docs/make_picture.py runs/digits

Left: images and the two views that pretraining makes of each. Right: the 360 test digits, placed by
t-SNE on the cosine similarity of their embeddings. t-SNE does not see the labels; they choose the
colors.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.manifold import TSNE

import supcon_tf
from supcon_tf.data import sources

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PICTURE = Path(__file__).with_name("digits.png")
NUM_EXAMPLES = 4


def draw_views(figure, images) -> None:
    """Rows of an image and its two views."""
    batches = supcon_tf.create_view_batches(
        (images, np.arange(NUM_EXAMPLES)),
        "simclr",
        batch_size=NUM_EXAMPLES,
        horizontal_flip=False,
        seed=3,
    )
    views, rows = next(iter(batches))
    axes = figure.subplots(NUM_EXAMPLES, 3, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for row, (index, pair) in enumerate(sorted(zip(rows.numpy(), views.numpy(), strict=True))):
        for axis, image in zip(axes[row], [images[index], *pair], strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("image", "view 1", "view 2"), strict=True):
        axis.set_title(title, fontsize=11)


def draw_map(figure, images, labels, embeddings) -> None:
    """Each digit in the color of its class, at the place of its embedding."""
    tsne = TSNE(metric="cosine", init="random", perplexity=90, early_exaggeration=2, random_state=1)
    places = tsne.fit_transform(embeddings)
    axis = figure.subplots()
    colors = plt.get_cmap("tab10").colors
    width = 0.045 * np.ptp(places[:, 0])
    height = 0.045 * np.ptp(places[:, 1]) * 1.25
    for image, label, (x, y) in zip(images, labels, places, strict=True):
        ink = np.ones([*image.shape[:2], 4])
        ink[..., :3] = colors[label]
        ink[..., 3] = image[..., 0] / 255
        box = (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
        axis.imshow(ink, extent=box, aspect="auto")
    axis.set_xlim(places[:, 0].min() - width, places[:, 0].max() + width)
    axis.set_ylim(places[:, 1].min() - height, places[:, 1].max() + height)
    axis.set_axis_off()
    axis.set_title("embeddings of the test digits (t-SNE)", fontsize=11)


def main() -> None:
    run = supcon_tf.load_run(sys.argv[1])
    digits = sources.load_splits("digits")
    figure = plt.figure(figsize=(10, 4.2))
    left, right = figure.subfigures(1, 2, width_ratios=(3, 7))
    first_of_class = [int(np.argmax(digits.train.labels == label)) for label in (2, 3, 6, 8)]
    draw_views(left, digits.train.images[first_of_class])
    draw_map(right, digits.test.images, digits.test.labels, run.embed(digits.test.images))
    figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

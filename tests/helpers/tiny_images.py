"""A folder dataset of a few images of one color each."""

from PIL import Image


def write_images(root, splits=("train", "test"), classes=("cat", "dog"), count=4, size=8):
    """root/<split>/<class>/<number>.png; returns root."""
    for split in splits:
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                color = (200 * label // max(1, len(classes) - 1), 10 * index, 90)
                Image.new("RGB", (size, size), color).save(folder / f"{index}.png")
    return root

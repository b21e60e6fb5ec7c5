"""Several labels per image: drawn shapes, so that the labels are known exactly.

    .venv/bin/python examples/multi_label.py

draws images of any number of four shapes, lists them in a CSV file, and trains on it with the
command and with `SupConClassifier`. Both print the mean average precision (mAP) on the test images.
The baselines are chance, where the average precision of a label is the share of images that have
it, and one logistic regression per label on the pixels.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from supcon_tf import SupConClassifier

SHAPES = ("circle", "cross", "square", "triangle")
SIZE = 24


def draw_image(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws the shapes of bool [4] in random places and shades of gray: uint8 [24, 24, 3]."""
    image = Image.fromarray(random.integers(0, 90, [SIZE, SIZE], dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    for shape in random.permutation(np.flatnonzero(labels)):
        r, shade = random.uniform(3, 4.5), int(random.integers(140, 256))
        x, y = random.uniform(r, SIZE - 1 - r, 2)
        if SHAPES[shape] == "circle":
            draw.ellipse([x - r, y - r, x + r, y + r], outline=shade)
        elif SHAPES[shape] == "square":
            draw.rectangle([x - r, y - r, x + r, y + r], outline=shade)
        elif SHAPES[shape] == "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], outline=shade)
        else:
            draw.line([x - r, y, x + r, y], fill=shade)
            draw.line([x, y - r, x, y + r], fill=shade)
    return np.array(image.convert("RGB"))


def draw_dataset(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws uint8 [count, 24, 24, 3] with labels bool [count, 4]."""
    random = np.random.default_rng(seed)
    labels = random.random([count, len(SHAPES)]) < 0.4
    return np.stack([draw_image(row, random) for row in labels]), labels


def write_csv(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Writes the images and labels.csv, whose lines look like `0.png,circle|cross,train`."""
    lines = ["filename,label,split"]
    for split, (images, labels) in parts.items():
        for index, (image, row) in enumerate(zip(images, labels, strict=True)):
            name = f"{split}_{index}.png"
            Image.fromarray(image).save(folder / name)
            classes = "|".join(SHAPES[shape] for shape in np.flatnonzero(row))
            lines.append(f"{name},{classes},{split}")
    path = folder / "labels.csv"
    path.write_text("\n".join(lines))
    return path


def run_command(data_csv: Path, model_dir: Path, epochs: float) -> dict:
    """Trains and evaluates with the command; returns the content of eval.json."""
    command = [
        sys.executable, "-m", "supcon_tf.main", "--mode=pretrain,linear,eval",
        f"--data_csv={data_csv}", "--label_type=multi_label", f"--model_dir={model_dir}",
        f"--pretrain_epochs={epochs}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((model_dir / "eval/eval.json").read_text())


def pixel_baseline(train, test) -> np.ndarray:
    """Returns the average precision [4] of one logistic regression per label on the pixels."""
    (images, labels), (test_images, test_labels) = train, test
    pixels, test_pixels = (x[..., 0].reshape(len(x), -1) / 255 for x in (images, test_images))
    models = [LogisticRegression(max_iter=2_000).fit(pixels, label) for label in labels.T]
    scores = [model.decision_function(test_pixels) for model in models]
    return np.array(
        [average_precision_score(*pair) for pair in zip(test_labels.T, scores, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--images", type=int, default=800, help="Number of training images.")
    arguments = parser.parse_args()
    train, test = draw_dataset(arguments.images, seed=0), draw_dataset(500, seed=1)

    with tempfile.TemporaryDirectory() as folder:
        data_csv = write_csv(Path(folder), {"train": train, "test": test})
        result = run_command(data_csv, Path(folder, "run"), arguments.epochs)
    low, high = result["intervals_95"]["mean_average_precision"]
    print(
        f"command: mAP {result['mean_average_precision']:.4f} (95% interval {low:.3f} to "
        f"{high:.3f})"
    )

    classifier = SupConClassifier(epochs=arguments.epochs, verbose=0)
    classifier.fit(train[0], train[1])
    print(f"Python: mAP {classifier.score(test[0], test[1]):.4f}")

    baseline = pixel_baseline(train, test)
    chance = test[1].mean(axis=0)
    print(f"logistic regressions on pixels: mAP {baseline.mean():.4f}")
    print(f"chance: mAP {chance.mean():.4f}")
    print("average precision of each label: command / pixels / chance")
    for shape, on_pixels, share in zip(SHAPES, baseline, chance, strict=True):
        found = result["average_precision"][shape]
        print(f"  {shape:<9} {found:.3f} / {on_pixels:.3f} / {share:.3f}")


if __name__ == "__main__":
    main()

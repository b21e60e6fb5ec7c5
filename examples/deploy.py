"""Deploying the SavedModel: TensorFlow alone, without supcon_tf, from image files to classes.

    .venv/bin/python examples/deploy.py

trains on the digits with the command, exports, and classifies images with the exported model. Of a
run of your own, pass the folder of the export stage and some images:

    .venv/bin/python -m supcon_tf.main --mode=export --model_dir=runs/mine
    .venv/bin/python examples/deploy.py runs/mine/export a.jpg b.jpg

Copy `load` and `classify` into your service: they need no more than TensorFlow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf


def load(export_dir: str) -> tuple:
    """Loads the model and the class names that --mode=export wrote."""
    tf.get_logger().setLevel("ERROR")  # It warns of missing gradients, which only training needs.
    model = tf.saved_model.load(f"{export_dir}/saved_model")
    return model, json.loads(Path(export_dir, "class_names.json").read_text())


def classify(model, class_names: list[str], images: list[bytes]) -> list[tuple[str, float]]:
    """Returns the class and its probability for images in the bytes of JPEG, PNG, BMP or GIF.

    The model takes uint8 [N, S, S, 3] with values 0..255. Resizing the whole image suits images
    that are about square; for others, cut out a square first.
    """
    side = model.signatures["serving_default"].structured_input_signature[1]["images"].shape[1]
    pixels = []
    for content in images:
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        image = tf.image.resize(image, [side, side], antialias=True)
        pixels.append(tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8))
    logits = model(tf.stack(pixels))["logits"]
    probabilities = tf.nn.softmax(logits).numpy()
    # A run with several labels per image has a probability per class: tf.sigmoid(logits).
    return [(class_names[row.argmax()], float(row.max())) for row in probabilities]


def train_and_export(folder: str, epochs: float) -> tuple[str, dict[str, bytes]]:
    """Runs the command on the digits; returns the export folder, and ten digits as PNG files."""
    command = [
        sys.executable, "-m", "supcon_tf.main", "--mode=pretrain,linear,export",
        "--dataset=digits", f"--model_dir={folder}", f"--pretrain_epochs={epochs}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    from sklearn.datasets import load_digits

    digits, images = load_digits(), {}
    for digit in range(10):
        # As the command prepares them: 16 px, with a border of 2 px.
        pixels = digits.images[digits.target == digit][0][..., None] * (255 / 16)
        pixels = tf.image.resize(pixels, [16, 16], method="bicubic")
        pixels = tf.pad(tf.clip_by_value(tf.round(pixels), 0, 255), [[2, 2], [2, 2], [0, 0]])
        images[f"a {digit}"] = tf.io.encode_png(tf.cast(pixels, tf.uint8)).numpy()
    return f"{folder}/export", images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export_dir", nargs="?", help="<model_dir>/export of a run.")
    parser.add_argument("images", nargs="*", help="Image files.")
    parser.add_argument("--epochs", type=float, default=10, help="Without a run of your own.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.export_dir:
            export_dir = arguments.export_dir
            images = {name: Path(name).read_bytes() for name in arguments.images}
        else:
            export_dir, images = train_and_export(folder, arguments.epochs)
        model, class_names = load(export_dir)
    answers = classify(model, class_names, list(images.values()))
    for name, (label, probability) in zip(images, answers, strict=True):
        print(f"{name}: {label} with probability {probability:.4f}")
    print(f"supcon_tf was imported: {'supcon_tf' in sys.modules}")


if __name__ == "__main__":
    main()

"""Imbalanced data: five digits with 100 training images each, and five with only 6 each.

    .venv/bin/python examples/imbalanced.py

writes scikit-learn's digits as image files, one folder per class, and runs the command twice:
once unchanged, and once with --class_balanced, which draws every class equally often in pretraining
and gives every class the same weight in the linear classifier. The test images are imbalanced too,
so the accuracy hides what happens to the rare classes. The mean per class shows it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FREQUENT, RARE = range(5), range(5, 10)


def write_digits(folder: Path, num_frequent: int, num_rare: int) -> None:
    """Writes train/<digit>/<i>.png and test/<digit>/<i>.png, 16 px."""
    digits = load_digits()
    for digit in (*FREQUENT, *RARE):
        count = num_frequent if digit in FREQUENT else num_rare
        num_test = 60 if digit in FREQUENT else 20
        chosen = np.flatnonzero(digits.target == digit)
        for split, indices in (("train", chosen[num_test:][:count]), ("test", chosen[:num_test])):
            (folder / split / str(digit)).mkdir(parents=True)
            for index in indices:
                image = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
                path = folder / split / str(digit) / f"{index}.png"
                image.resize((16, 16), Image.Resampling.BICUBIC).save(path)


def run_command(folder: Path, name: str, *arguments: str) -> dict:
    """Trains and evaluates with the command; returns the content of eval.json."""
    model_dir = folder / name
    command = [
        sys.executable, "-m", "supcon_tf.main", "--mode=pretrain,linear,eval",
        f"--data_dir={folder / 'digits'}", f"--model_dir={model_dir}", "--horizontal_flip=false",
        *arguments,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((model_dir / "eval/eval.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--frequent", type=int, default=100, help="Images per frequent class.")
    parser.add_argument("--rare", type=int, default=6, help="Images per rare class.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder, "digits"), arguments.frequent, arguments.rare)
        for name, flags in (("as it is", []), ("balanced", ["--class_balanced"])):
            result = run_command(
                Path(folder), name, f"--pretrain_epochs={arguments.epochs}", *flags
            )
            low, high = result["intervals_95"]["mean_per_class_accuracy"]
            print(
                f"{name:<9} top-1 {result['top_1']:.4f}, mean per class "
                f"{result['mean_per_class_accuracy']:.4f} (95% interval {low:.3f} to {high:.3f})"
            )


if __name__ == "__main__":
    main()

"""A pretrained start: another training begins with an encoder from a file, and learns faster.

    .venv/bin/python examples/pretrained.py

The example trains an encoder on scikit-learn's digits 0 to 4 and saves it. Then it has ten images
of each of the digits 5 to 9, which that encoder never saw, and trains on them twice: from the saved
encoder with a low learning rate and frozen batch norm, and from random weights. It prints the test
accuracy on the digits 5 to 9 of both.
"""

import argparse
import os
import tempfile

import numpy as np

from supcon_tf import SupConClassifier
from supcon_tf.data import sources

PER_CLASS = 10


def load_digits(split: str, digits: range) -> tuple[np.ndarray, np.ndarray]:
    """Loads the images uint8 [N, 20, 20, 3] of these digits, and their labels [N]."""
    source = sources.load_source("digits", split)
    chosen = np.isin(source.labels, digits)
    return source.images[chosen], source.labels[chosen]


def first_of_each(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = [np.flatnonzero(labels == label)[:PER_CLASS] for label in np.unique(labels)]
    return images[np.concatenate(chosen)], labels[np.concatenate(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrain_epochs", type=float, default=15)
    parser.add_argument("--epochs", type=float, default=40)
    arguments = parser.parse_args()

    few = first_of_each(*load_digits("train", range(5, 10)))
    test = load_digits("test", range(5, 10))
    options = {"epochs": arguments.epochs, "horizontal_flip": False, "verbose": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "encoder.keras")
        first = SupConClassifier(epochs=arguments.pretrain_epochs, horizontal_flip=False, verbose=0)
        first.fit(*load_digits("train", range(5))).encoder_.save(path)

        pretrained = SupConClassifier(
            encoder=path, freeze_batch_norm=True, base_learning_rate=0.003, **options
        )
        print(f"from the saved encoder: {pretrained.fit(*few).score(*test):.4f}")
    scratch = SupConClassifier(**options).fit(*few)
    print(f"from random weights: {scratch.score(*test):.4f}")


if __name__ == "__main__":
    main()

"""`SupConClassifier` on scikit-learn's digits: fit, score, a grid search, save and load.

    .venv/bin/python examples/estimator.py

trains on the command's 1,437 training digits and prints the accuracy on its 360 test digits, how
long the training took, the accuracy of two temperatures in a cross-validation, and the accuracy
after saving and loading.
"""

import argparse
import tempfile
import time

from sklearn.model_selection import GridSearchCV

from supcon_tf import SupConClassifier
from supcon_tf.data import sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--search_epochs", type=float, default=10, help="0 skips the search.")
    parser.add_argument("--images", type=int, default=1_437)
    arguments = parser.parse_args()
    train, test = (sources.load_source("digits", split) for split in ("train", "test"))
    images, labels = train.images[: arguments.images], train.labels[: arguments.images]

    started = time.monotonic()
    classifier = SupConClassifier(epochs=arguments.epochs)
    classifier.fit(images, labels, validation_data=(test.images, test.labels))
    seconds = time.monotonic() - started
    print(f"top-1 {classifier.score(test.images, test.labels):.4f} after {seconds:.0f} seconds")

    if arguments.search_epochs:
        search = GridSearchCV(
            SupConClassifier(epochs=arguments.search_epochs, verbose=0),
            {"temperature": [0.05, 0.5]},
            cv=2,
            refit=False,
        )
        search.fit(images, labels)
        for parameters, score in zip(
            search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
        ):
            print(f"temperature {parameters['temperature']}: {score:.4f} in cross-validation")

    with tempfile.TemporaryDirectory() as folder:
        classifier.save(folder)
        loaded = SupConClassifier.load(folder)
        print(f"saved and loaded: top-1 {loaded.score(test.images, test.labels):.4f}")


if __name__ == "__main__":
    main()

"""Your own data: any tf.data dataset of (image, label), here with several labels per image.

    .venv/bin/python examples/own_data.py

The example puts two of scikit-learn's digits into each picture and labels it with both. It
pretrains an encoder, where two pictures are positives if they share at least one digit. Then it
trains a linear classifier on the frozen encoder with Keras, and prints the mean average precision
of this classifier and of a logistic regression.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import supcon_tf
from supcon_tf.data import sources
from supcon_tf.models import contrastive

SIZE = 24


def create_pairs(split: str, count: int) -> tf.data.Dataset:
    """Creates (uint8 [20, 40, 3], float32 [10]): two digits side by side, and their labels."""
    digits = sources.load_source("digits", split)
    first, second = np.random.default_rng(0).integers(len(digits.labels), size=[2, count])
    images = np.concatenate([digits.images[first], digits.images[second]], axis=2)
    labels = np.eye(10, dtype=np.float32)[digits.labels]
    return tf.data.Dataset.from_tensor_slices((images, np.maximum(labels[first], labels[second])))


def squeeze(image: tf.Tensor, label: tf.Tensor):
    """Resizes the whole picture to the input size of the encoder, for the evaluation."""
    return tf.image.resize(image, [SIZE, SIZE]), label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=2_000)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)

    train = create_pairs("train", arguments.pictures)
    test = create_pairs("test", 500).map(squeeze)
    views = supcon_tf.create_view_batches(
        train.shuffle(arguments.pictures, seed=0),
        policy=supcon_tf.create_policy("simclr", magnitude=0.5),
        batch_size=64,
        image_size=SIZE,
        crop_area_range=(0.7, 1.0),
        horizontal_flip=False,
    )
    encoder = supcon_tf.create_encoder("tiny", image_size=SIZE)
    model = supcon_tf.ContrastiveModel(encoder)
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss=supcon_tf.SupConLoss())
    model.fit(views, steps_per_epoch=arguments.steps, verbose=0)

    classifier = contrastive.create_classifier(encoder, supcon_tf.create_linear_head(64, 10))
    classifier.compile(
        optimizer=keras.optimizers.Adam(0.03),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    classifier.fit(train.map(squeeze).batch(64), epochs=5, verbose=0)
    figures = supcon_tf.evaluate_classifier(classifier, test)
    print(f"classifier: mean average precision {figures['mean_average_precision']:.4f}")
    figures = supcon_tf.evaluate_embeddings(encoder, train.map(squeeze), test)
    precision = figures["linear_probe_mean_average_precision"]
    print(f"logistic regression: mean average precision {precision:.4f}")


if __name__ == "__main__":
    main()

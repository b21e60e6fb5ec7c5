"""Your own Keras model as encoder: any float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    .venv/bin/python examples/own_encoder.py

The example trains two encoders with the supervised contrastive loss on scikit-learn's digits: a
network from keras.applications and a small one defined below. It prints the test accuracy of a
logistic regression on their embeddings.
"""

import argparse

import keras
import tensorflow as tf
from keras import layers

import supcon_tf
from supcon_tf.data import sources

SIZE = 32


def create_own_encoder() -> keras.Model:
    """Creates a small convolutional encoder, which scales the images from 0..255 itself."""
    images = keras.Input([SIZE, SIZE, 3], dtype="float32")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, layers.GlobalAveragePooling2D()(x), name="own")


def load_digits(split: str) -> tf.data.Dataset:
    """Loads scikit-learn's digits as (image uint8 [32, 32, 3], label)."""
    digits = sources.load_source("digits", split)
    images = tf.cast(tf.image.resize(digits.images, [SIZE, SIZE]), tf.uint8)
    return tf.data.Dataset.from_tensor_slices((images, digits.labels))


def train(encoder: keras.Model, steps: int) -> keras.Model:
    views = supcon_tf.create_view_batches(
        load_digits("train").shuffle(2_000, seed=0),
        policy=supcon_tf.create_policy("simclr", magnitude=0.5),
        batch_size=64,
        image_size=SIZE,
        crop_area_range=(0.5, 1.0),
        horizontal_flip=False,
    )
    model = supcon_tf.ContrastiveModel(encoder)
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss=supcon_tf.SupConLoss())
    model.fit(views, steps_per_epoch=steps, verbose=0)
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--network", default="keras.applications.MobileNetV3Small")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    for encoder in (
        create_own_encoder(),
        supcon_tf.create_encoder(arguments.network, image_size=SIZE),
    ):
        figures = supcon_tf.evaluate_embeddings(
            train(encoder, arguments.steps), load_digits("train"), load_digits("test")
        )
        print(f"{encoder.name}: logistic regression {figures['linear_probe_top_1']:.4f}")


if __name__ == "__main__":
    main()

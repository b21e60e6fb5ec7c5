"""SupCon with `fit`, written as the examples of keras.io are; time_to_accuracy.py measures it.

Preprocessing layers of Keras inside `Dataset.map`, a loss with full matrices, and `model.fit`
(https://keras.io/examples/vision/supervised-contrastive-learning/ and
https://keras.io/examples/vision/semisupervised_simclr/, which crops with a translation and a
zoom). The network is the one of `supcon_tf` as a plain Keras model; optimizer and schedule are
those of the command that time_to_accuracy.py runs. Keras' color jitter has no probability and is
applied to every image. After every epoch a callback adds a line with the k-NN accuracy to a file.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
from peer_program import argument_parser, knn_accuracy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from supcon_tf.models import resnet
from supcon_tf.training import optimizers

BATCH_SIZE, PEAK_RATE, TEMPERATURE, SIZE = 64, 0.003, 0.1, 32
SMALLEST_AREA = 0.5


def create_augmenter():
    zoom = 1.0 - SMALLEST_AREA**0.5
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomTranslation(zoom / 2, zoom / 2),
            keras.layers.RandomZoom((-zoom, 0.0), (-zoom, 0.0)),
            keras.layers.RandomColorJitter(
                brightness_factor=0.4,
                contrast_factor=0.4,
                saturation_factor=(0.3, 0.7),
                hue_factor=0.1,
            ),
            keras.layers.RandomGrayscale(0.2),
        ]
    )


def create_model():
    """Returns the encoder and the model of two views: [B, 2, S, S, 3] -> [B, 2, 128]."""
    encoder = resnet.create_resnet(architecture="tiny", image_size=SIZE)
    views = keras.Input([2, SIZE, SIZE, 3])
    features = encoder(keras.ops.reshape(views, [-1, SIZE, SIZE, 3]))
    features = keras.layers.UnitNormalization()(features)
    rows = keras.layers.Dense(
        128, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01)
    )(features)
    rows = keras.layers.UnitNormalization()(rows)
    return encoder, keras.Model(views, keras.ops.reshape(rows, [-1, 2, 128]))


def supcon_loss(labels, projections):
    """Eq. 2 of Khosla et al. 2020, times the temperature: [B], [B, 2, D] -> scalar."""
    rows = tf.concat(tf.unstack(projections, axis=1), axis=0)
    labels = tf.tile(tf.reshape(labels, [-1]), [2])
    not_self = 1.0 - tf.eye(tf.shape(rows)[0])
    positives = tf.cast(labels[:, None] == labels[None, :], tf.float32) * not_self
    logits = rows @ tf.transpose(rows) / TEMPERATURE
    logits -= tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
    log_sums = tf.math.log(tf.reduce_sum(tf.exp(logits) * not_self, axis=1, keepdims=True))
    means = tf.reduce_sum(positives * (logits - log_sums), 1) / tf.reduce_sum(positives, 1)
    return -TEMPERATURE * tf.reduce_mean(means)


class KnnCallback(keras.callbacks.Callback):
    """Writes the k-NN accuracy of the encoder after every epoch."""

    def __init__(self, encoder, train, test, log):
        super().__init__()
        self._encoder, self._log = encoder, log
        self._sets = [
            (images, np.concatenate([labels.numpy() for _, labels in images]))
            for images in (train, test)
        ]

    def on_epoch_end(self, epoch, logs=None):
        sets = []
        for images, labels in self._sets:
            sets += [self._encoder.predict(images.map(lambda x, _: x), verbose=0), labels]
        line = {
            "epoch": epoch + 1,
            "loss": float(logs["loss"]),
            "knn_accuracy": knn_accuracy(*sets),
        }
        with self._log.open("a") as file:
            print(json.dumps(line), file=file)


def main():
    arguments = argument_parser(__doc__.splitlines()[0]).parse_args()
    keras.utils.set_random_seed(arguments.seed)

    known, asked = (
        keras.utils.image_dataset_from_directory(
            arguments.data / split, image_size=(SIZE, SIZE), batch_size=256, shuffle=False
        )
        for split in ("train", "test")
    )
    steps = len(known.file_paths) // BATCH_SIZE
    known, asked = known.cache(), asked.cache()
    augmenter = create_augmenter()
    batches = (
        known.unbatch().shuffle(BATCH_SIZE * (steps + 1)).batch(BATCH_SIZE, drop_remainder=True)
    )
    batches = batches.map(
        lambda x, y: (tf.stack([augmenter(x, training=True) for _ in range(2)], axis=1), y),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)

    encoder, model = create_model()
    schedule = optimizers.WarmUpThenDecay(
        PEAK_RATE, total_steps=arguments.epochs * steps, warmup_steps=steps
    )
    model.compile(optimizer=keras.optimizers.Adam(schedule), loss=supcon_loss)
    callback = KnnCallback(encoder, known, asked, arguments.log)
    model.fit(batches, epochs=arguments.epochs, callbacks=[callback], verbose=2)


if __name__ == "__main__":
    main()

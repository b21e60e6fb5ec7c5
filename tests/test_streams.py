"""How well a stream of TensorFlow Datasets is shuffled, from files in class order."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from supcon_tf.data import sources, streams

NUM_EXAMPLES, NUM_FILES = 1_280, 32


@pytest.fixture(scope="module")
def in_class_order(tmp_path_factory):
    """A real TFDS directory of 32 files, whose examples are numbered by their labels."""
    import tensorflow_datasets as tfds

    file = io.BytesIO()
    Image.fromarray(np.zeros([1, 1, 3], np.uint8)).save(file, "PNG")

    class InClassOrder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(1, 1, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=NUM_EXAMPLES),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(NUM_EXAMPLES):
                yield index, {"image": io.BytesIO(file.getvalue()), "label": index}

    folder = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(num_shards=NUM_FILES)
    InClassOrder(data_dir=folder).download_and_prepare(download_config=config)
    return folder


def load(folder):
    return sources.load_source("in_class_order", "train", folder)


def order(source, count, **options):
    """The numbers of the next examples."""
    examples = source.examples(seed=0, **options).map(lambda image, label: label)
    return next(examples.batch(count).as_numpy_iterator())


def correlation_of_epochs(source):
    """Of the position of an example in the first and in the second epoch."""
    epochs = order(source, 2 * NUM_EXAMPLES).reshape(2, NUM_EXAMPLES)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(NUM_EXAMPLES)] * 2)
    first, second = np.argsort(epochs, axis=1)
    return np.corrcoef(first, second)[0, 1]


def test_a_set_that_fits_into_memory_is_shuffled_fully(in_class_order):
    """A correlation of 0, within 4 deviations of 1 / sqrt(n), with the files and between epochs."""
    source = load(in_class_order)
    assert source.shuffle_buffer is None
    assert abs(correlation_of_epochs(source)) < 4 / np.sqrt(NUM_EXAMPLES)
    with_files = np.corrcoef(order(source, NUM_EXAMPLES), np.arange(NUM_EXAMPLES))[0, 1]
    assert abs(with_files) < 4 / np.sqrt(NUM_EXAMPLES)


def test_a_larger_set_reads_its_files_in_another_order_in_every_epoch(in_class_order):
    """With the same order of files in every epoch, positions would correlate by 0.90."""
    source = dataclasses.replace(load(in_class_order), shuffle_buffer=NUM_EXAMPLES // 10)
    assert abs(correlation_of_epochs(source)) < 0.5


def test_the_buffer_is_bounded_by_the_memory_of_encoded_examples(in_class_order, monkeypatch):
    num_bytes = load(in_class_order).builder.info.splits["train"].num_bytes
    monkeypatch.setattr(streams, "SHUFFLE_BYTES", num_bytes // 4)
    assert load(in_class_order).shuffle_buffer == pytest.approx(NUM_EXAMPLES / 4, abs=1)
    monkeypatch.setattr(streams, "SHUFFLE_BYTES", num_bytes)
    assert load(in_class_order).shuffle_buffer is None


@pytest.mark.parametrize("buffer", [None, NUM_EXAMPLES // 10])
def test_a_stream_resumes_anywhere_whatever_its_buffer(in_class_order, buffer):
    source = dataclasses.replace(load(in_class_order), shuffle_buffer=buffer)
    whole = order(source, 2 * NUM_EXAMPLES + 20)
    for start in (7, NUM_EXAMPLES + 100, 2 * NUM_EXAMPLES):
        np.testing.assert_array_equal(order(source, 20, start=start), whole[start:][:20])
    hosts = [order(source, NUM_EXAMPLES // 2, host=host, num_hosts=2) for host in range(2)]
    np.testing.assert_array_equal(np.sort(np.concatenate(hosts)), np.arange(NUM_EXAMPLES))
    tf.random.set_seed(5)
    np.testing.assert_array_equal(order(source, 20), whole[:20])

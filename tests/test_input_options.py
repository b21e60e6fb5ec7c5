"""What flags change about the input: balance, order, evaluation crops, whitening, blur."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from supcon_tf import crops, decode, order, pipeline, policies, sources

IDENTITY = policies.create_policy("identity")
PHOTO = load_sample_images().images[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve JPEG and PNG files of different shapes, of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(12):
        folder = root / "train" / ("cat" if index < 8 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(PHOTO[20 * index :][: 40 + index, 30 * index :][:, :50])
        image.save(folder / f"{index}.{'png' if index % 3 == 0 else 'jpg'}")
    return sources.load_source("folder", "train", str(root))


# Order.


def balanced_rows(labels, num_steps, batch_size, **options):
    plan = order.BatchPlan(
        num_examples=len(labels), batch_size=batch_size, seed=3, balanced_labels=labels, **options
    )
    return np.concatenate([plan.index(step).numpy() for step in range(num_steps)])


def test_balanced_classes_come_equally_often_and_go_through_all_their_examples():
    labels = np.array([5] * 30 + [2] * 3 + [7] * 9, np.int32)
    rows = balanced_rows(labels, 45, 6)  # 270 rows: 90 of each class.
    runs = labels[rows].reshape(-1, 3)
    assert all(sorted(run) == [2, 5, 7] for run in runs.tolist())
    assert len({tuple(run) for run in runs.tolist()}) == 6  # In every order.
    for label, count in ((5, 30), (2, 3), (7, 9)):
        epochs = rows[labels[rows] == label].reshape(-1, count)
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(labels == label))
        assert np.any(epochs != epochs[0])


def test_balanced_rows_do_not_depend_on_batch_size_or_host():
    labels = np.array([0] * 7 + [1] * 3 + [3] * 11, np.int32)
    rows = balanced_rows(labels, 10, 8)
    np.testing.assert_array_equal(rows, balanced_rows(labels, 20, 4))
    hosts = [
        balanced_rows(labels, 10, 8, first_row=4 * host, num_rows=4).reshape(10, 4)
        for host in range(2)
    ]
    np.testing.assert_array_equal(rows.reshape(10, 8), np.concatenate(hosts, axis=1))


def test_a_stream_cannot_be_balanced():
    source = sources.StreamSource(None, "train", 8, ("a", "b"))
    with pytest.raises(ValueError, match="class_balanced.*one folder per class"):
        pipeline.create_train_batches(
            source, policy=IDENTITY, batch_size=4, image_size=8, seed=0, class_balanced=True
        )


def create(source, num_steps, *, threads=None, **options):
    batches = pipeline.create_train_batches(
        source, policy=IDENTITY, batch_size=8, image_size=16, seed=1, **options
    )
    if threads:
        chosen = tf.data.Options()
        chosen.threading.private_threadpool_size = threads
        chosen.autotune.enabled = threads > 1
        batches = batches.with_options(chosen)
    return [{name: x.numpy() for name, x in batch.items()} for batch in batches.take(num_steps)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@pytest.mark.parametrize("balanced", [False, True])
def test_batches_of_files_are_the_same_for_any_threads_replicas_and_start(photos, balanced):
    options = {"class_balanced": balanced}
    batches = create(photos, 5, **options)
    assert batches[0]["image"].shape == (8, 2, 16, 16, 3)
    for threads in (1, 16):
        assert_equal(create(photos, 5, threads=threads, **options), batches)
    assert_equal(create(photos, 2, start_step=3, **options), batches[3:])
    parts = create(photos, 8, num_replicas=4, **options)
    whole = [
        {name: np.concatenate([part[name] for part in parts[4 * step :][:4]]) for name in parts[0]}
        for step in range(2)
    ]
    assert_equal(whole, batches[:2])
    if balanced:
        assert all(np.bincount(batch["label"]).tolist() == [4, 4] for batch in batches)


def test_training_crops_of_files_are_those_of_the_whole_image(photos):
    """The same crops, through the compiled loop over decoded images of one shape."""
    image = decode.decode_image(tf.io.read_file(photos.paths[1])).numpy()
    one = sources.FileSource(photos.paths[1:2], photos.labels[1:2], photos.class_names)
    array = sources.ArraySource(image[None], photos.labels[1:2], photos.class_names)
    views = [
        next(
            iter(
                pipeline.create_train_batches(
                    source, policy=IDENTITY, batch_size=1, image_size=16, seed=0, num_views=6
                )
            )
        )["image"].numpy()
        for source in (one, array)
    ]
    assert np.abs(views[0].astype(int) - views[1]).max() <= 1


# Evaluation crops.


@pytest.mark.parametrize("shape", [(60, 91), (91, 60), (64, 64)])
def test_resize_then_crop_is_the_centre_of_the_resized_image(shape):
    image = PHOTO[: shape[0], : shape[1]]
    scale = (32 + 8) / min(shape)
    sides = [int(scale * side + 1e-6) for side in shape]
    resized = tf.image.resize(image, sides).numpy()
    top, left = ((side - 32 + 1) // 2 for side in sides)
    result = crops.eval_crop(image, 32, method="resize_then_crop", padding=8)
    np.testing.assert_allclose(result, resized[top : top + 32, left : left + 32], atol=0.51)


def test_crop_then_resize_and_crop_then_distort():
    image = PHOTO[:60, :91]
    result = crops.eval_crop(image, 32, method="crop_then_resize", padding=8)
    # 60 x 32 / 40 = 48 pixels, from (60 - 48 + 1) // 2 and (91 - 48 + 1) // 2.
    expected = tf.image.resize(image[6:54, 22:70], [32, 32])
    np.testing.assert_allclose(result, expected, atol=0.51)
    result = crops.eval_crop(image, 32, method="crop_then_distort", padding=8)
    expected = tf.image.resize(tf.image.central_crop(image, 0.8), [32, 32])
    np.testing.assert_allclose(result, expected, atol=0.51)


@pytest.mark.parametrize("method", ["auto", "identity", "crop_then_resize"])
def test_without_padding_an_image_of_the_right_size_stays_as_it_is(method):
    image = PHOTO[:32, :32]
    np.testing.assert_array_equal(crops.eval_crop(image, 32, method=method, padding=0), image)


def test_the_crop_method_reaches_the_evaluation(photos):
    def evaluate(**options):
        batches = pipeline.create_eval_batches(photos, batch_size=12, image_size=16, **options)
        return next(iter(batches))["image"].numpy()

    made = [evaluate(crop_method=method) for method in crops.EVAL_CROP_METHODS[:-1]]
    made.append(evaluate(crop_method="resize_then_crop", crop_padding=2))
    for index, images in enumerate(made):
        assert all(np.any(images != other) for other in made[:index])
    with pytest.raises(tf.errors.InvalidArgumentError, match="identity needs images of 16x16"):
        evaluate(crop_method="identity")
    with pytest.raises(ValueError, match="Unknown eval_crop_method 'centre'"):
        evaluate(crop_method="centre")

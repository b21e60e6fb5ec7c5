"""One's own tf.data dataset of (image, label) as batches of views."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers import command, tiny_training  # noqa: F401  (command defines the flags)
from helpers.shared_policies import shared_policy

from supcon_tf.augment import blur
from supcon_tf.data import pipeline, sources, view_batches
from supcon_tf.evaluation import predictions
from supcon_tf.losses.supcon import SupConLoss
from supcon_tf.models import contrastive
from supcon_tf.stages import inputs

SIZE = 16


def examples(count=10, *, several=False):
    """Images of different shapes, each of one brightness that is its label."""

    def generate():
        for label in range(count):
            yield np.full([12 + label, 20, 3], 10 * label, np.uint8), label

    signature = (tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32))
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    if several:
        return dataset.map(lambda image, label: (image, tf.one_hot([label % 3, 2], 3)[0]))
    return dataset


def create(dataset, **options):
    options = {"batch_size": 4, "image_size": SIZE, "seed": 0, **options}
    options.setdefault("policy", shared_policy("identity"))
    return view_batches.create_view_batches(dataset, **options)


def test_views_belong_to_their_labels_and_the_examples_come_again_and_again():
    seen = []
    for views, labels in create(examples(), num_views=3).take(5):
        assert views.shape == (4, 3, SIZE, SIZE, 3) and views.dtype == tf.uint8
        np.testing.assert_array_equal(views, np.broadcast_to(
            10 * labels.numpy()[:, None, None, None, None], views.shape
        ))  # fmt: skip
        seen += labels.numpy().tolist()
    assert seen == [*range(10), *range(10)]


def textured():
    images = np.random.default_rng(0).integers(0, 256, [8, 20, 20, 3]).astype(np.uint8)
    return images, (np.arange(8) % 4).astype(np.int32)


def test_what_happens_to_a_row_is_a_function_of_seed_step_and_row():
    dataset = tf.data.Dataset.from_tensor_slices(textured())
    options = {"policy": shared_policy("simclr", magnitude=0.5)}

    def steps(**more):
        return [views.numpy() for views, _ in create(dataset, **options, **more).take(4)]

    first, again, other = steps(), steps(), steps(seed=1)
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.array(first) != np.array(other)) > 0.5
    assert np.mean(first[0] != first[2]) > 0.5  # The same examples an epoch later.
    assert np.mean(first[0][:, 0] != first[0][:, 1]) > 0.5
    later = next(iter(create(dataset.skip(4), start_step=1, **options)))[0]
    np.testing.assert_array_equal(later, first[1])


def test_own_data_meets_what_an_array_source_meets():
    """The same images in the same order and steps: the same views, within one level."""
    images, labels = textured()
    source = sources.ArraySource(images, labels, ("a", "b", "c", "d"))
    options = {
        "policy": shared_policy("simclr", magnitude=0.5),
        "batch_size": 4,
        "image_size": SIZE,
        "seed": 3,
        "crop_area_range": (0.5, 1.0),
    }
    batch = next(iter(pipeline.create_train_batches(source, **options)))
    from supcon_tf.data.batch_plan import BatchPlan

    order = BatchPlan(num_examples=8, batch_size=4, seed=3).index(0).numpy()
    dataset = tf.data.Dataset.from_tensor_slices((images[order], labels[order]))
    views, own_labels = next(iter(view_batches.create_view_batches(dataset, **options)))
    np.testing.assert_array_equal(own_labels, batch["label"])
    gap = np.abs(views.numpy().astype(int) - batch["image"].numpy())
    assert np.quantile(gap, 0.99) <= 2 and np.abs(gap).mean() < 0.5


@pytest.mark.parametrize("several", [False, True])
def test_fit_lowers_the_loss_for_class_numbers_and_several_labels(several):
    keras.utils.set_random_seed(0)
    images, labels = textured()
    labels = np.eye(4, dtype=np.float32)[labels] if several else labels
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    model = contrastive.ContrastiveModel(tiny_training.create_encoder(side=SIZE))
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss=SupConLoss())
    batches = create(dataset, batch_size=8, crop_area_range=(0.8, 1.0))
    history = model.fit(batches, steps_per_epoch=5, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("kind", ["float images", "batches", "no label"])
def test_examples_of_another_form_are_refused(kind):
    images, labels = textured()
    dataset = {
        "float images": (images.astype(np.float32), labels),
        "batches": (images[None], labels[None]),
        "no label": images,
    }[kind]
    with pytest.raises(ValueError, match=r"unbatched dataset.*images uint8 \[H, W, 3\]"):
        create(tf.data.Dataset.from_tensor_slices(dataset))


def test_arrays_meet_what_the_command_gives_its_encoder_with_its_blur():
    """Digits through the flags of the command, and as arrays with the same values."""
    options = {"batch_size": 8, "blur_probability": 0.5, "crop_area_range": (0.6, 0.9)}
    source = sources.load_source("digits", "train")
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", "--batch_size=8", "--blur_probability=0.5"])
        policy = inputs.policy_from_flags(flags.FLAGS, flags.FLAGS.augmentation_type)
        batch = next(iter(inputs.train_batches_from_flags(
            flags.FLAGS, tf.distribute.get_strategy(), source,
            inputs.Views(20, policy, num_views=2, crop_area_range=(0.6, 0.9)), start_step=0,
        )))  # fmt: skip
    batches = view_batches.create_view_batches(
        (source.images, source.labels), "simclr", horizontal_flip=False, **options
    )
    views, labels = next(iter(batches))
    np.testing.assert_array_equal(labels, batch["label"])
    np.testing.assert_allclose(views, blur.blurred_images(batch), atol=1e-3)
    is_blurred = np.abs(views - batch["image"].numpy()).max(axis=(2, 3, 4)) > 0.01
    np.testing.assert_array_equal(is_blurred, batch["blur_sigma"] > 0)
    assert 0 < is_blurred.sum() < is_blurred.size


def test_grey_arrays_and_several_labels_are_taken():
    images, _ = textured()
    labels = np.eye(8)[:, :3]
    batches = view_batches.create_view_batches((images[..., 0], labels), "identity", batch_size=4)
    views, several = next(iter(batches))
    assert views.shape == (4, 2, 20, 20, 3) and views.dtype == tf.uint8
    assert several.shape == (4, 3) and np.ptp(views, axis=-1).max() == 0


IMAGES, LABELS = textured()


@pytest.mark.parametrize(
    "arrays,message",
    [
        ((IMAGES / 255, LABELS), r"\(255 \* images\).round\(\).astype"),
        ((IMAGES.astype(np.float32), LABELS), r"pass images.astype\('uint8'\)"),
        ((IMAGES[..., :2], LABELS), r"\[M, H, W, 3\].*\(8, 20, 20, 2\)"),
        ((IMAGES, LABELS[:3]), "one label for each of the 8 images"),
        (IMAGES, "arrays \\(images, labels\\) or a tf.data.Dataset"),
        (tf.data.Dataset.from_tensor_slices(textured()), "set image_size"),
    ],
)
def test_arrays_of_another_form_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        view_batches.create_view_batches(arrays, "identity", batch_size=4)


def small_model():
    pixels = keras.Input([SIZE, SIZE, 3], dtype="float32")
    features = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(pixels))
    model = contrastive.ContrastiveModel(keras.Model(pixels, features))
    model.compile(optimizer="sgd", loss=SupConLoss())
    return model


def entry_points(views, labels):
    """Every way in that takes images of the user's."""
    model = small_model()
    dataset = tf.data.Dataset.from_tensor_slices((views, labels)).batch(4)
    examples = dataset.map(lambda views, labels: (views[:, 0], labels))
    return {
        "fit arrays": lambda: model.fit(views, labels, batch_size=4, verbose=0),
        "fit a dataset": lambda: model.fit(dataset, verbose=0),
        "evaluate": lambda: model.evaluate(views, labels, verbose=0),
        "predict": lambda: model.predict(views, verbose=0),
        "call": lambda: model(views),
        "embed": lambda: model.embed(views),
        "evaluate_embeddings": lambda: predictions.evaluate_embeddings(
            model.encoder, examples, examples
        ),
    }


VIEWS = np.random.default_rng(0).uniform(0, 255, [8, 2, SIZE, SIZE, 3]).astype(np.float32)


@pytest.mark.parametrize("way", entry_points(VIEWS, LABELS))
def test_images_from_0_to_1_give_a_warning_and_others_none(way):
    with pytest.warns(UserWarning, match=r"values from .* to .* multiply by 255"):
        entry_points(VIEWS / 255, LABELS)[way]()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*multiply by 255")
        entry_points(VIEWS, LABELS)[way]()
        if way == "call":
            entry_points(np.zeros_like(VIEWS), LABELS)[way]()

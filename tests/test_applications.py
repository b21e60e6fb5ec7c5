import math
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.command import run_inside
from helpers.tiny_images import write_images

from supcon_tf.losses import supcon
from supcon_tf.models import applications, contrastive
from supcon_tf.training import checkpoint, optimizers, steps

SIDE = 32
NAME = "keras.applications.MobileNet"
SMALL = {"alpha": 0.25}


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return contrastive.create_encoder(NAME, image_size=SIDE, **SMALL)


def random_images(count=4):
    images = np.random.default_rng(0).integers(0, 256, [count, SIDE, SIDE, 3])
    return images.astype(np.float32)


def test_a_network_of_keras_keeps_the_contract(encoder):
    contrastive.check_encoder(encoder)
    assert encoder.input_shape == (None, SIDE, SIDE, 3) and encoder.output_shape == (None, 256)
    assert encoder.outputs[0].dtype == "float32"


NETWORKS = {
    "MobileNet": ("mobilenet", SMALL),  # Scales to [-1, 1].
    "VGG16": ("vgg16", {}),  # Swaps red and blue and subtracts a mean.
    "DenseNet121": ("densenet", {}),  # Whitens with the constants of ImageNet.
    "MobileNetV3Small": ("mobilenet_v3", SMALL),  # Takes 0..255 itself.
}


def outputs_of_the_network(name, encoder):
    """The features of the network inside an encoder, of images as Keras prepares them for it."""
    images = random_images()
    network = next(layer for layer in encoder.layers if isinstance(layer, keras.Model))
    module = getattr(keras.applications, NETWORKS[name][0])
    prepared = module.preprocess_input(images.copy())
    assert name == "MobileNetV3Small" or np.abs(prepared - images).max() > 1
    return network.predict(prepared, verbose=0)


def assert_close(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5 + 1e-3 * expected.max())


def test_images_are_prepared_as_the_network_wants_them_by_layers_of_keras(encoder, tmp_path):
    """`test_pretrained.py` prepares images for every network."""
    expected = outputs_of_the_network("MobileNet", encoder)
    encoder.save(tmp_path / "encoder.keras")
    with zipfile.ZipFile(tmp_path / "encoder.keras") as archive:
        assert b"supcon_tf" not in archive.read("config.json")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    assert_close(loaded.predict(random_images(), verbose=0), expected)


@pytest.mark.slow  # test_main.py loads the encoder of a run in a process without this package.
def test_the_saved_file_of_every_kind_of_network_needs_keras_alone(tmp_path):
    names, expected = list(NETWORKS), {}
    for name in names:
        options = NETWORKS[name][1]
        encoder = contrastive.create_encoder(applications.PREFIX + name, image_size=SIDE, **options)
        encoder.save(tmp_path / f"{name}.keras")
        expected[name] = outputs_of_the_network(name, encoder)
    images = random_images()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np\n"
        "for name in sys.argv[1:]:\n"
        "    encoder = keras.models.load_model(name + '.keras')\n"
        "    np.save(name, encoder.predict(np.load('images.npy'), verbose=0))\n"
        "print('ALONE', 'supcon_tf' not in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert "ALONE True" in done.stdout, done.stderr
    for name in names:
        assert_close(np.load(tmp_path / f"{name}.npy"), expected[name])


def test_global_batch_norm_is_set_and_saved(encoder, tmp_path):
    def norms(model):
        (network,) = [layer for layer in model.layers if isinstance(layer, keras.Model)]
        kind = keras.layers.BatchNormalization
        return [layer.synchronized for layer in network.layers if isinstance(layer, kind)]

    assert len(norms(encoder)) == 27 and all(norms(encoder))
    encoder.save(tmp_path / "encoder.keras")
    assert all(norms(keras.models.load_model(tmp_path / "encoder.keras")))
    local = contrastive.create_encoder(NAME, image_size=SIDE, use_global_batch_norm=False, **SMALL)
    assert not any(norms(local))


@pytest.mark.slow
def test_replicas_normalize_as_one_device(two_replicas):
    """The statistics of one training call on 4 images, 2 on each of two replicas."""
    images = random_images(4)

    def batch_variances(strategy, is_global):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            encoder = contrastive.create_encoder(
                NAME, image_size=SIDE, use_global_batch_norm=is_global, **SMALL
            )

        @tf.function(autograph=False)
        def run(dataset):
            return strategy.run(lambda x: encoder(x, training=True), args=(dataset,))

        data = tf.data.Dataset.from_tensor_slices(images).batch(4)
        for batch in strategy.experimental_distribute_dataset(data):
            run(batch)
        averages = [v for v in encoder.non_trainable_variables if "moving_variance" in v.path]
        # From 1 by a hundredth of the way: momentum is 0.99.
        return np.concatenate([(variable.numpy() - 0.99) / 0.01 for variable in averages])

    one = batch_variances(tf.distribute.OneDeviceStrategy("CPU:0"), True)
    np.testing.assert_allclose(batch_variances(two_replicas, True), one, rtol=1e-2, atol=1e-3)
    assert np.abs(batch_variances(two_replicas, False) - one).max() > 0.1


def test_dropout_goes_on_where_the_checkpoint_stands(tmp_path):
    """Three steps at once, or one, a restart, and two more: the same losses."""

    def start():
        keras.utils.set_random_seed(0)
        images = keras.Input([8, 8, 3])
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(images))
        encoder = keras.Model(images, keras.layers.Dense(4)(x))
        step = steps.ContrastiveStep(
            model=contrastive.ContrastiveModel(encoder),
            loss=supcon.SupConLoss(reduction=None),
            optimizer=optimizers.create_optimizer("momentum", 0.1),
            global_batch_size=8,
        )
        folder = checkpoint.CheckpointFolder(str(tmp_path), **step.models, **step.optimizers)
        return tf.function(step, autograph=False), folder

    images = np.random.default_rng(0).integers(0, 256, [8, 2, 8, 8, 3]).astype(np.uint8)
    batch = {"image": tf.constant(images), "label": tf.constant(np.arange(8) % 2)}
    step, folder = start()
    whole = [float(step(batch)["loss"])]
    folder.save(1)
    whole += [float(step(batch)["loss"]) for _ in range(2)]
    step, folder = start()
    step(batch), step(batch)  # Elsewhere, until it is restored.
    assert folder.restore_latest() == 1
    assert [float(step(batch)["loss"]) for _ in range(2)] == whole[1:]


def test_batch_norm_under_any_name_has_no_weight_decay(encoder):
    paths = [variable.path for variable in encoder.trainable_variables]
    decayed = [path for path in paths if optimizers.is_decayed(path, optimizers.NEVER_DECAYED)]
    assert len(decayed) == 27 and all(path.endswith("kernel") for path in decayed)
    assert len(paths) == 3 * 27


@pytest.mark.parametrize(
    "name,size,message",
    [
        ("keras.applications.ResNet51", 32, "Unknown encoder .*ResNet50,"),
        ("keras.applications.mobilenet", 32, "Unknown encoder"),
        ("keras.applications.Xception", 32, "cannot be built for image_size=32.*at least 71x71"),
        ("keras.applications.MobileNet", 20, "cannot be built for image_size=20.*at least 32x32"),
    ],
)
def test_what_cannot_be_built_is_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        contrastive.create_encoder(name, image_size=size)


def functional(shape=(8, 8, 3), dtype="float32", flat=True, output_dtype="float32"):
    images = keras.Input(shape, dtype=dtype)
    x = keras.layers.Conv2D(4, 3, dtype=output_dtype)(images)
    if flat:
        x = keras.layers.GlobalAveragePooling2D(dtype=output_dtype)(x)
    return keras.Model(images, x)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"dtype": "uint8"}, r"takes uint8 \(None, 8, 8, 3\): expected images float32"),
        ({"shape": (8, 8, 1)}, r"takes float32 \(None, 8, 8, 1\)"),
        ({"flat": False}, r"gives float32 \(None, 6, 6, 4\): expected features float32"),
        ({"output_dtype": "bfloat16"}, r"gives bfloat16 \(None, 4\)"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(options, message):
    contrastive.ContrastiveModel(functional())
    with pytest.raises(ValueError, match=message):
        contrastive.ContrastiveModel(functional(**options))


def test_a_model_without_inputs_is_refused():
    class Subclassed(keras.Model):
        def call(self, images):
            return images

    with pytest.raises(ValueError, match="has 0 inputs and 0 outputs: expected a functional"):
        contrastive.ContrastiveModel(Subclassed())


TINY_STAGES = (
    "--image_size=32", "--pretrain_epochs=0.05", "--pretrain_warmup_epochs=0",
    "--linear_epochs=0.05", "--knn_interval_epochs=0", "--noonline_probe", "--batch_size=32",
)  # fmt: skip


@pytest.mark.slow
def test_every_stage_takes_a_network_of_keras_with_dropout(tmp_path, capsys):
    arguments = ("--encoder=keras.applications.EfficientNetV2B0", f"--model_dir={tmp_path}")
    with pytest.raises(ValueError, match="image_size=20"):  # The side of the digits.
        run_inside("--mode=pretrain", *arguments)
    data = write_images(tmp_path / "data", count=16, size=32)
    run_inside(
        "--mode=pretrain,linear,eval,embed,export", *arguments, *TINY_STAGES,
        f"--data_dir={data}", "--batch_size=16", "--pretrain_epochs=1", "--linear_epochs=1",
    )  # fmt: skip
    encoder = keras.models.load_model(tmp_path / "pretrain/encoder.keras")
    assert encoder.output_shape == (None, 1280)
    num_parameters = sum(math.prod(variable.shape) for variable in encoder.trainable_variables)
    assert f"encoder with {num_parameters:,} parameters" in capsys.readouterr().out
    with np.load(tmp_path / "embed/embeddings.npz") as arrays:
        assert arrays["embeddings"].shape == (32, 1280)
    assert (tmp_path / "export/saved_model/saved_model.pb").exists()

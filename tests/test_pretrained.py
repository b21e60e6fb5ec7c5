"""Encoders and weights from files and from ImageNet: what is loaded, checked and refused."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import own_encoders
from helpers.command import run_inside

from supcon_tf.models import applications, contrastive, saved_encoder
from supcon_tf.storage import encoder_files

SMALL_MOBILENET = {"architecture": "keras.applications.MobileNet", "image_size": 32, "alpha": 0.25}
WEIGHTS_FILE = "mobilenet_2_5_224_tf_no_top.h5"


def some_images(side=20, count=3):
    return np.random.default_rng(0).uniform(0, 255, [count, side, side, 3]).astype("float32")


def all_equal(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# Weights of ImageNet.


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty folder for what Keras downloads, and no connection."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


def test_without_a_connection_one_message_names_file_folder_and_url(keras_home):
    with pytest.raises(ValueError) as caught:
        contrastive.create_encoder(weights="imagenet", **SMALL_MOBILENET)
    message = str(caught.value)
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{WEIGHTS_FILE}"
    assert f"wants the file {WEIGHTS_FILE} in the folder {keras_home / 'models'} " in message
    assert f"curl -L -o {WEIGHTS_FILE} {url}\n" in message


def test_the_weights_in_the_folder_of_keras_are_used(keras_home):
    network = keras.applications.MobileNet(
        alpha=0.25, weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    (keras_home / "models").mkdir()
    network.save(keras_home / "models" / WEIGHTS_FILE)
    encoder = contrastive.create_encoder(weights="imagenet", **SMALL_MOBILENET)
    assert all_equal(encoder.get_weights(), network.get_weights())
    other = contrastive.create_encoder(**SMALL_MOBILENET)
    assert not all_equal(other.get_weights(), network.get_weights())
    # The same file, wherever it is.
    saved_encoder.load_weights_into(other, str(keras_home / "models" / WEIGHTS_FILE))
    assert all_equal(other.get_weights(), network.get_weights())


# How the documentation of each network says that it wants its images (https://keras.io/api/
# applications/), from values x in 0..255.
def of_torch(x):
    return (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def of_caffe(x):
    return x[..., ::-1] - [103.939, 116.779, 123.68]


PREPARED = {
    "ConvNeXt": lambda x: x,
    "DenseNet": of_torch,
    "EfficientNet": lambda x: x,
    "InceptionResNetV2": lambda x: x / 127.5 - 1,
    "InceptionV3": lambda x: x / 127.5 - 1,
    "MobileNetV3": lambda x: x,
    "MobileNet": lambda x: x / 127.5 - 1,
    "NASNet": lambda x: x / 127.5 - 1,
    "ResNet": of_caffe,
    "VGG": of_caffe,
    "Xception": lambda x: x / 127.5 - 1,
}


@pytest.mark.parametrize("architecture", applications.names())
def test_every_network_gets_its_images_as_it_wants_them(architecture):
    name = architecture.removeprefix(applications.PREFIX)
    family = next(family for family in PREPARED if name.startswith(family))
    expected = PREPARED[family]
    if name.startswith("ResNet") and name.endswith("V2"):
        expected = PREPARED["MobileNet"]
    images = keras.Input([8, 8, 3])
    prepared = keras.Model(images, applications.preprocess(architecture, images * 1.0))
    result = prepared(some_images(8)).numpy()
    np.testing.assert_allclose(result, expected(some_images(8).astype("float64")), atol=1e-4)


# Weights of files.


def create_tiny(**options):
    return contrastive.create_encoder("tiny", image_size=8, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An encoder, and its weights in every kind of file."""
    folder = tmp_path_factory.mktemp("tiny")
    keras.utils.set_random_seed(1)
    encoder = create_tiny()
    encoder.compile(optimizer="adam", loss="mse")  # The file then holds the optimizer's state too.
    encoder.save_weights(folder / "encoder.weights.h5")
    (folder / "run/pretrain").mkdir(parents=True)
    encoder.save(folder / "run/pretrain/encoder.keras")
    return folder, encoder


@pytest.mark.parametrize("file", ["encoder.weights.h5", "run/pretrain/encoder.keras", "run"])
def test_weights_come_from_every_kind_of_file(tiny, file):
    folder, encoder = tiny
    assert not all_equal(create_tiny().get_weights(), encoder.get_weights())
    loaded = create_tiny(weights=str(folder / file))
    assert all_equal(loaded.get_weights(), encoder.get_weights())


@pytest.mark.slow
def test_weights_of_a_network_of_keras_alone_fit_its_encoder(tmp_path):
    """People save the network, without the preprocessing that an encoder here has around it."""
    encoder = contrastive.create_encoder(**SMALL_MOBILENET)
    (network,) = [layer for layer in encoder.layers if isinstance(layer, keras.Model)]
    for name, model in (("whole", encoder), ("network", network)):
        path = str(tmp_path / f"{name}.weights.h5")
        model.save_weights(path)
        other = contrastive.create_encoder(weights=path, **SMALL_MOBILENET)
        assert all_equal(other.get_weights(), encoder.get_weights())


def test_weights_of_another_width_are_refused_with_both_shapes_and_the_remedy(tiny):
    path = str(tiny[0] / "encoder.weights.h5")
    with pytest.raises(ValueError) as caught:
        create_tiny(width=2, weights=path)
    message = str(caught.value)
    assert f"{path} do not fit the encoder tiny" in message
    assert "(shape [3, 3, 3, 16] in the file, [3, 3, 3, 32] expected)" in message
    assert "Build the encoder of the file: its --encoder, depth and width" in message


def test_weights_of_another_depth_are_refused_with_the_names_of_arrays(tmp_path):
    own_encoders.tiny_vit(depth=1).save_weights(tmp_path / "shallow.weights.h5")
    own_encoders.tiny_vit(depth=2).save(tmp_path / "vit.keras")
    with pytest.raises(ValueError, match=r"16 missing in the file: layers/dense_2/vars/0, "):
        contrastive.create_encoder(
            str(tmp_path / "vit.keras"), weights=str(tmp_path / "shallow.weights.h5")
        )


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("none.weights.h5", None, "none.weights.h5 do not exist. Expected 'imagenet', a .weights"),
        ("none", None, "neither a file of a known kind nor the directory of a finished run"),
        ("torch.pth", "x", "--encoder=resnet_v1 --reference_ckpt=.*torch.pth"),
        ("text.weights.h5", "x", "text.weights.h5 are not an HDF5 file"),
        ("text.h5", "x", "text.h5 do not fit the encoder tiny"),
        ("text.keras", "x", "text.keras are not a model file of Keras 3"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        create_tiny(weights=str(tmp_path / name))


def test_only_networks_of_keras_have_weights_of_imagenet():
    with pytest.raises(ValueError, match="no ImageNet weights for the encoder 'tiny'"):
        create_tiny(weights="imagenet")


# Encoders of files.


def test_a_vision_transformer_is_loaded_and_keeps_its_outputs(tmp_path):
    vit = own_encoders.tiny_vit()
    vit.save(tmp_path / "vit.keras")
    loaded = contrastive.create_encoder(str(tmp_path / "vit.keras"))
    np.testing.assert_array_equal(loaded(some_images()), vit(some_images()))
    assert len(loaded.trainable_variables) == len(vit.trainable_variables) == 37
    images = some_images()
    images[:, :5], images[:, 5:10] = images[:, 5:10].copy(), images[:, :5].copy()
    assert np.abs(loaded(images) - vit(some_images())).max() > 1e-6  # It sees positions.


def test_an_encoder_for_any_size_takes_the_size_that_is_asked_for(tmp_path):
    own_encoders.small_convolution(None).save(tmp_path / "any.keras")
    path = str(tmp_path / "any.keras")
    encoder = contrastive.create_encoder(path, image_size=12)
    assert encoder.input_shape == (None, 12, 12, 3) and encoder.output_shape == (None, 16)
    assert encoder.layers[2].output.shape == (None, 6, 6, 8)  # The memory check needs the sizes.
    saved = keras.models.load_model(path)
    np.testing.assert_array_equal(encoder(some_images(12)), saved(some_images(12)))
    with pytest.raises(ValueError, match="takes images of any size: name the one to use"):
        contrastive.create_encoder(path)


def test_a_wholly_frozen_encoder_is_trained_and_a_partly_frozen_one_stays_so(tmp_path):
    encoder = own_encoders.small_convolution()
    encoder.layers[2].trainable = False
    encoder.save(tmp_path / "partly.keras")
    encoder.trainable = False
    encoder.save(tmp_path / "wholly.keras")
    partly = contrastive.create_encoder(str(tmp_path / "partly.keras"))
    assert len(partly.trainable_variables) == 5
    wholly = contrastive.create_encoder(str(tmp_path / "wholly.keras"))
    assert len(wholly.trainable_variables) == 6


def test_batch_norm_over_all_replicas_is_chosen_for_an_encoder_of_a_file(tmp_path):
    own_encoders.small_convolution().save(tmp_path / "encoder.keras")
    for is_global in (True, False):
        encoder = contrastive.create_encoder(
            str(tmp_path / "encoder.keras"), use_global_batch_norm=is_global
        )
        kind = keras.layers.BatchNormalization
        norms = [layer for layer in encoder.layers if isinstance(layer, kind)]
        assert [layer.synchronized for layer in norms] == [is_global] * 2


@keras.saving.register_keras_serializable(package="test_pretrained")
class Unknown(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def test_an_encoder_with_layers_that_keras_does_not_know_is_refused(tmp_path, monkeypatch):
    images = keras.Input([8, 8, 3])
    features = keras.layers.GlobalAveragePooling2D()(Unknown()(images))
    keras.Model(images, features).save(tmp_path / "own.keras")
    contrastive.create_encoder(str(tmp_path / "own.keras"))  # Here the class is registered.
    with keras.saving.CustomObjectScope({}):
        registry = keras.saving.get_custom_objects()
        monkeypatch.delitem(registry, "test_pretrained>Unknown")
        monkeypatch.setattr(Unknown, "__module__", "not_there")
        shutil.copy(tmp_path / "own.keras", tmp_path / "copy.keras")
        change_module(tmp_path / "copy.keras")
        with pytest.raises(ValueError, match="cannot be loaded: .*Keras' own layers"):
            contrastive.create_encoder(str(tmp_path / "copy.keras"))


def change_module(path):
    """Makes the file name a module that does not exist, as on another machine."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(__name__.encode(), b"not_there")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_an_encoder_of_other_outputs_is_refused(tmp_path):
    images = keras.Input([8, 8, 3])
    keras.Model(images, keras.layers.Conv2D(4, 3)(images)).save(tmp_path / "maps.keras")
    with pytest.raises(ValueError, match="end it with GlobalAveragePooling2D"):
        contrastive.create_encoder(str(tmp_path / "maps.keras"))


def test_the_hash_of_an_encoder_follows_its_weights_and_not_the_time_of_saving(tmp_path):
    keras.utils.set_random_seed(0)
    encoder = own_encoders.small_convolution()
    encoder.save(tmp_path / "first.keras")
    encoder.save(tmp_path / "again.keras")
    own_encoders.small_convolution().save(tmp_path / "other.keras")
    first, again, other = (
        saved_encoder.encoder_identity(str(tmp_path / f"{name}.keras"))
        for name in ("first", "again", "other")
    )
    assert first == again != other


@pytest.mark.parametrize(
    "name,is_path",
    [
        ("tiny", False), ("keras.applications.ResNet50", False), ("vit.keras", True),
        ("runs/mine", True), ("./mine", True), ("gs://bucket/run", True), ("old.h5", True),
    ],
)  # fmt: skip
def test_a_path_is_told_from_the_name_of_an_architecture(name, is_path):
    assert encoder_files.is_encoder_path(name) == is_path


# The command.

SHORT = (
    "--mode=pretrain", "--num_images=64", "--batch_size=16", "--pretrain_warmup_epochs=0",
    "--knn_interval_epochs=0", "--noonline_probe", "--augmentation_type=identity",
    "--strategy=one_device",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--encoder=none.keras"], "The encoder .*none.keras does not exist"),
        (["--encoder={folder}/none"], "is not the directory of a finished run: it has neither"),
        (["--encoder={folder}/e.weights.h5"], "is not an encoder: expected a .keras file"),
        (["--encoder={folder}/text.keras"], "is not a model file of Keras 3.*model.save"),
        (["--encoder={folder}/wide.keras"], r"takes inputs of shape \[None, 8, 9, 3\]: .*square"),
        (
            ["--encoder={folder}/e.keras", "--image_size=32"],
            "takes images of 20 x 20 pixels, but image_size=32. Leave image_size out",
        ),
        (["--encoder_weights={folder}/none.keras"], "none.keras do not exist"),
        (
            ["--encoder={folder}/run", "--model_dir={folder}/run"],
            "is the encoder of this very run.*--model_dir=.*run_continued",
        ),
        (["--encoder_weights=imagenet"], "encoder_weights=imagenet has no weights for .*=tiny"),
        (["--freeze_batch_norm"], "--encoder=tiny starts untrained.*--encoder_weights=imagenet"),
        (
            ["--encoder={folder}/e.keras", "--reference_ckpt={folder}/run"],
            "both name the weights that the encoder starts with.*--nowarm_start_encoder",
        ),
        (["--encoder={folder}/e.keras", "--whitening=given"], "normalizes images itself"),
        (["--encoder={folder}/e.keras", "--first_conv_stride=2"], "has its own first convolution"),
        (["--encoder=resnet"], "or the path of an encoder: a .keras file"),
    ],
)
def test_what_pretraining_cannot_start_from_is_refused_before_it_starts(starts, arguments, message):
    given = [argument.format(folder=starts) for argument in arguments]
    with pytest.raises(Exception, match=message) as caught:
        run_inside("--mode=pretrain", f"--model_dir={starts}/new", *given)
    assert not os.path.exists(starts / "new"), caught


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    encoder = own_encoders.small_convolution()
    encoder.save(folder / "e.keras")
    (folder / "run/pretrain").mkdir(parents=True)
    encoder.save(folder / "run/pretrain/encoder.keras")
    encoder.save_weights(folder / "e.weights.h5")
    (folder / "text.keras").write_text("not a model")
    images = keras.Input([8, 9, 3])
    keras.Model(images, keras.layers.Flatten()(images)).save(folder / "wide.keras")
    return folder


def test_a_run_starts_from_a_file_and_notices_that_the_file_has_changed(tmp_path, capsys):
    path = tmp_path / "encoder.keras"
    encoder = own_encoders.small_convolution(16)
    encoder.save(path)
    run = (*SHORT, f"--encoder={path}", "--pretrain_epochs=0", f"--model_dir={tmp_path / 'run'}")
    run_inside(*run)
    said = capsys.readouterr().out
    assert "is made for 16 px: using --image_size=16." in said
    assert f"The encoder starts from {path}." in said
    trained = keras.models.load_model(tmp_path / "run/pretrain/encoder.keras")
    assert all_equal(trained.get_weights(), encoder.get_weights())
    encoder.save(path)  # The same model again.
    run_inside(*run)
    assert "is already finished" in capsys.readouterr().out
    own_encoders.small_convolution(16).save(path)
    with pytest.raises(ValueError, match="made with a different encoder than the current one"):
        run_inside(*run)


@pytest.mark.slow
def test_a_vision_transformer_goes_through_every_stage_and_stands_alone(tmp_path, capsys):
    own_encoders.tiny_vit().save(tmp_path / "vit.keras")
    first = tmp_path / "first"
    run_inside(
        *SHORT, "--mode=pretrain,linear,eval,embed,export", f"--encoder={tmp_path / 'vit.keras'}",
        "--pretrain_epochs=1", f"--model_dir={first}", "--eval_train_examples=50",
    )  # fmt: skip
    code = (
        "import sys, keras, numpy as np\n"
        f"encoder = keras.models.load_model(r'{first / 'pretrain/encoder.keras'}')\n"
        "print(encoder(np.zeros([1, 20, 20, 3])).shape, 'supcon_tf' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert "(1, 16) False" in done.stdout, done.stderr
    # Another run goes on from the directory of this one, without batch norm to freeze.
    again = (*SHORT, f"--encoder={first}", "--pretrain_epochs=1")
    run_inside(*again, f"--model_dir={tmp_path / 'second'}")
    assert f"The encoder starts from {first}." in capsys.readouterr().out
    with pytest.raises(ValueError, match="tiny_vit has no batch norm layers to freeze"):
        run_inside(*again, "--freeze_batch_norm", f"--model_dir={tmp_path / 'third'}")


@pytest.mark.slow
def test_weights_of_a_file_are_an_input_of_the_run(tmp_path):
    path = tmp_path / "encoder.weights.h5"
    encoder = contrastive.create_encoder("tiny", image_size=20)
    encoder.save_weights(path)
    run = (
        *SHORT, f"--encoder_weights={path}", "--pretrain_epochs=0",
        f"--model_dir={tmp_path / 'run'}",
    )  # fmt: skip
    run_inside(*run)
    trained = keras.models.load_model(tmp_path / "run/pretrain/encoder.keras")
    assert all_equal(trained.get_weights(), encoder.get_weights())
    contrastive.create_encoder("tiny", image_size=20).save_weights(path, overwrite=True)
    with pytest.raises(ValueError, match="made with a different encoder_weights than"):
        run_inside(*run)


PAGE = (Path(__file__).parent.parent / "docs/pretrained.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_and_the_commands_of_docs_pretrained_run_in_order(tmp_path, monkeypatch):
    """As typed, in one folder, but for fewer epochs and images."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(<!-- not run: .*? -->\n)?```(\w+)\n(.*?)```", PAGE, re.S)
    kept = [(language, code) for marker, language, code in blocks if not marker]
    (code,) = [code for language, code in kept if language == "python"]
    exec(compile(code, "make_encoder.py", "exec"), {})
    run = 0
    for line in "".join(code for language, code in kept if language == "bash").splitlines():
        program, _, arguments = line.partition(" -m supcon_tf.main ")
        if arguments:
            short = [] if "--pretrain_epochs=0" in arguments else ["--pretrain_epochs=0.5"]
            run_inside(
                *shlex.split(arguments), *short, "--num_images=150", "--pretrain_warmup_epochs=0"
            )
            run += 1
        else:
            assert program == ".venv/bin/python make_encoder.py"
    assert run == 5
    # The recipe keeps the batch norm of the run that it starts from; the other runs have none.
    first, second = (
        keras.models.load_model(f"runs/{name}/pretrain/encoder.keras")
        for name in ("first", "second")
    )
    moved = {
        variable.path: not np.array_equal(variable, other)
        for variable, other in zip(first.variables, second.variables, strict=True)
    }
    assert any(moved.values()) and not any(
        value for path, value in moved.items() if "batch_normalization" in path
    )

"""Weights of torchvision's ResNets, as in SupContrast's ImageNet checkpoint, without PyTorch."""

import re

import numpy as np
import pytest
import tensorflow as tf
from helpers.command import run_inside
from helpers.make_torchvision_outputs import (
    PATH,
    SIDE,
    draw_images,
    draw_parameter,
    parameter_shapes,
)
from helpers.torch_files import write_checkpoint

import supcon_tf
from supcon_tf.data import whitening
from supcon_tf.interop import torch_weights

STEM = {
    "first_conv_kernel_size": 7,
    "first_conv_stride": 2,
    "use_initial_max_pool": True,
    "initial_max_pool_padding": "symmetric",
}
FLAGS = (
    "--resnet_depth=18", "--first_conv_kernel_size=7", "--first_conv_stride=2",
    "--use_initial_max_pool=true", "--initial_max_pool_padding=symmetric",
)  # fmt: skip
WHITENING = {"mean": whitening.IMAGENET_MEAN, "std": whitening.IMAGENET_STD}


def create_encoder(depth, *, padding="symmetric", **options):
    options = {**STEM, "initial_max_pool_padding": padding, **options}
    return supcon_tf.create_resnet(depth=depth, image_size=SIDE, **WHITENING, **options)


def draw_state(depth, prefix=""):
    return {
        prefix + name: draw_parameter(name, shape)
        for name, shape in parameter_shapes(depth).items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet-18 as torchvision saves it, with its classifier."""
    state = draw_state(18)
    state |= {"fc.weight": np.ones([1000, 512]), "fc.bias": np.ones(1000)}
    return write_checkpoint(tmp_path_factory.mktemp("torchvision") / "resnet18.pth", state)


def relative_difference(encoder, depth):
    with np.load(PATH) as stored:
        expected = stored[f"resnet{depth}"]
    features = encoder.predict(draw_images().astype(np.float32), verbose=0)
    assert features.shape == expected.shape
    return np.abs(features - expected).max() / np.abs(expected).max()


def test_a_supcontrast_checkpoint_gives_the_features_of_torchvision(tmp_path):
    """Names, 7x7 stem, projection head and optimizer as in SupContrast's supcon.pth."""
    state = draw_state(50, "module.encoder.")
    for name, shape in {"head.0": (2048, 2048), "head.2": (128, 2048)}.items():
        state |= {f"module.{name}.weight": np.ones(shape), f"module.{name}.bias": np.ones(shape[0])}
    encoder = create_encoder(50)
    assert relative_difference(encoder, 50) > 0.1
    torch_weights.load_supcontrast(write_checkpoint(tmp_path / "supcon.pth", state), encoder)
    difference = relative_difference(encoder, 50)
    print(f"ResNet-50: {difference:.2g} of the largest feature")
    assert difference < 1e-4


def test_a_state_dict_of_torchvision_gives_its_features(checkpoint, tmp_path):
    encoder = torch_weights.load_supcontrast(checkpoint, create_encoder(18))
    difference = relative_difference(encoder, 18)
    print(f"ResNet-18: {difference:.2g} of the largest feature")
    assert difference < 1e-4
    # TensorFlow's padding is what the option is for: the same weights give other features.
    other = create_encoder(18, padding="same")
    other.set_weights(encoder.get_weights())
    difference = relative_difference(other, 18)
    print(f"ResNet-18 with padding as TensorFlow: {difference:.2g}")
    assert difference > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        pytest.param({"padding": "same", "use_initial_max_pool": False}, marks=pytest.mark.slow),
        pytest.param({"first_conv_stride": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_another_stem_is_refused_with_the_flags_that_fit(options, checkpoint):
    encoder = create_encoder(18, **options)
    before = encoder.get_weights()
    with pytest.raises(ValueError, match="does not fit the encoder") as error:
        torch_weights.load_supcontrast(checkpoint, encoder)
    for flag in FLAGS:
        assert flag in str(error.value)
    for old, new in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_the_command_makes_an_encoder_of_the_checkpoint_with_the_flags_of_its_message(
    checkpoint, tmp_path
):
    command = [
        "--mode=pretrain", "--pretrain_epochs=0", "--pretrain_warmup_epochs=0",
        f"--model_dir={tmp_path}", f"--reference_ckpt={checkpoint}", f"--image_size={SIDE}",
        "--whitening=given", f"--whitening_mean={','.join(map(str, whitening.IMAGENET_MEAN))}",
        f"--whitening_std={','.join(map(str, whitening.IMAGENET_STD))}", "--eval_batch_size=256",
    ]  # fmt: skip
    with pytest.raises(ValueError) as error:
        run_inside(*command, "--encoder=resnet_v1", "--resnet_depth=18")
    flags = re.search(r"Build the encoder with (--.*?), in Python", str(error.value)).group(1)
    run_inside(*command, *flags.split())
    encoder = tf.keras.models.load_model(tmp_path / "pretrain/encoder.keras")
    assert relative_difference(encoder, 18) < 1e-4

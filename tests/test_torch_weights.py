import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.torch_files import torch_state, write_checkpoint

from supcon_tf.data import whitening
from supcon_tf.interop import torch_weights
from supcon_tf.models import contrastive, resnet

HELPERS = Path(__file__).parent / "helpers"
# Another Python may hold PyTorch, which supcon_tf does not need.
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)


def create_encoder(depth, **options):
    options = {"first_conv_kernel_size": 3, "first_conv_stride": 1, **options}
    return resnet.create_resnet(depth=depth, image_size=32, use_initial_max_pool=False, **options)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_checkpoint_of_torch_gives_the_outputs_of_torch(depth, tmp_path):
    if subprocess.run([TORCH_PYTHON, "-c", "import torch"], capture_output=True).returncode:
        pytest.skip("needs PyTorch: install it, or set TORCH_PYTHON to a Python that has it")
    script = HELPERS / "supcontrast_torch.py"
    subprocess.run([TORCH_PYTHON, script, f"--depth={depth}", f"--folder={tmp_path}"], check=True)
    path, torch = str(tmp_path / "checkpoint.pth"), np.load(tmp_path / "outputs.npz")
    encoder = create_encoder(depth, mean=whitening.CIFAR10_MEAN, std=whitening.CIFAR10_STD)
    torch_weights.load_supcontrast(path, encoder)
    head = torch_weights.load_supcontrast_head(path)
    images = torch["images"].astype(np.float32)
    embeddings = encoder.predict(images, verbose=0)
    scale = np.abs(torch["embeddings"]).max()
    print(f"depth {depth}: {np.abs(embeddings - torch['embeddings']).max()} of {scale}")
    np.testing.assert_allclose(embeddings, torch["embeddings"], rtol=1e-4, atol=1e-4 * scale)
    model = contrastive.ContrastiveModel(encoder, head, normalize_embedding=False)
    np.testing.assert_allclose(model(images)[:, 0], torch["projections"], atol=1e-4)


@pytest.fixture(scope="module")
def encoder():
    """A ResNet-18 with its own statistics and the identity in its first shortcut."""
    encoder = create_encoder(18)
    rng = np.random.default_rng(0)
    for layer in encoder.layers:
        if "batch_normalization" in layer.name:
            count = layer.gamma.shape[0]
            low, high = rng.uniform(0.5, 1.5, [2, count])
            layer.set_weights([low, *rng.normal(0, 0.2, [2, count]), high])
    encoder.get_layer("group0_block0_conv0").set_weights([np.eye(64)[None, None]])
    ones, zeros = np.ones(64), np.zeros(64)
    norm = encoder.get_layer("group0_block0_batch_normalization0")
    norm.set_weights([ones, zeros, zeros, ones - norm.epsilon])
    return encoder


@pytest.fixture(scope="module")
def blank():
    return create_encoder(18)


def test_weights_go_where_their_names_say_and_the_missing_shortcut_is_the_identity(
    encoder, blank, tmp_path
):
    state = torch_state(encoder)
    state = {name: value for name, value in state.items() if ".layer1.0.shortcut" not in name}
    images = np.random.default_rng(1).uniform(0, 255, [4, 32, 32, 3]).astype(np.float32)
    expected = encoder.predict(images, verbose=0)
    assert np.abs(blank.predict(images, verbose=0) - expected).max() > 0.1
    torch_weights.load_supcontrast(write_checkpoint(tmp_path / "x.pth", state), blank)
    np.testing.assert_allclose(blank.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["a linear head", "a head of two layers"])
def test_the_head_is_that_of_the_equation(kind, tmp_path):
    rng = np.random.default_rng(0)
    x, shapes = rng.normal(size=[3, 8]).astype(np.float32), [(6, 8), (4, 6)]
    names = ["head.0.", "head.2."]
    if kind == "a linear head":
        shapes, names = [(4, 8)], ["head."]
    state, expected = {}, x
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        weight, bias = rng.normal(size=shape), rng.normal(size=shape[:1])
        state |= {f"{name}weight": weight, f"{name}bias": bias}
        expected = (np.maximum(expected, 0) if index else expected) @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    head = torch_weights.load_supcontrast_head(write_checkpoint(tmp_path / "x.pth", state))
    np.testing.assert_allclose(head(x), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="no projection head; it holds encoder.x"):
        path = write_checkpoint(tmp_path / "y.pth", {"encoder.x": np.zeros(2)})
        torch_weights.load_supcontrast_head(path)


@pytest.mark.parametrize("change", ["deeper", "wider stem", "lacking", "surplus"])
def test_another_architecture_is_refused_and_changes_nothing(change, encoder, blank, tmp_path):
    state, target = torch_state(encoder), blank
    if change == "wider stem":
        state["encoder.conv1.weight"] = np.zeros([64, 3, 7, 7])
    if change == "lacking":
        del state["encoder.layer2.0.shortcut.0.weight"]
    if change == "surplus":
        state["encoder.layer4.1.conv3.weight"] = np.zeros([4])
    if change == "deeper":
        target = contrastive.create_encoder("tiny", image_size=32)
    before = target.get_weights()
    path = write_checkpoint(tmp_path / "x.pth", state)
    with pytest.raises(ValueError, match="does not fit .*ResNet-18 .* --resnet_depth=18"):
        torch_weights.load_supcontrast(path, target)
    for old, new in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_head_of_layers_that_do_not_fit_is_refused_before_it_is_built(tmp_path):
    """Layers of 30,000 outputs each would take gigabytes, though the file is small."""
    state = {}
    for index in (0, 2):
        state |= {f"head.{index}.weight": np.zeros([30_000, 1])}
        state |= {f"head.{index}.bias": np.zeros(30_000)}
    path = write_checkpoint(tmp_path / "x.pth", state)
    with pytest.raises(ValueError, match="layers do not fit together"):
        torch_weights.load_supcontrast_head(path)

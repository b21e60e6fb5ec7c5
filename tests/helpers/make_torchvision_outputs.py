"""Writes tests/helpers/torchvision_outputs.npz: torchvision's ResNets for drawn weights.

    PYTHON_WITH_TORCH tests/helpers/make_torchvision_outputs.py

made the stored file with torchvision 0.29.1 and PyTorch 2.14.1. tests/test_torchvision.py draws the
same weights and images, for which it needs NumPy alone, and compares our features with the stored.
"""

import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "torchvision_outputs.npz"
DEPTHS, SIDE, NUM_IMAGES = (18, 50), 64, 4
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parameter_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """torchvision's names and shapes for the network without its classifier."""
    shapes = {}

    def add(conv, norm, out, into, size):
        shapes[f"{conv}.weight"] = (out, into, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (out,)

    add("conv1", "bn1", 64, 3, 7)
    channels = 64
    for group, count in enumerate(BLOCKS[depth], start=1):
        filters = 64 * 2 ** (group - 1)
        out = filters if depth < 50 else 4 * filters
        for index in range(count):
            name = f"layer{group}.{index}"
            if depth < 50:
                sizes = [(filters, channels, 3), (filters, filters, 3)]
            else:
                sizes = [(filters, channels, 1), (filters, filters, 3), (out, filters, 1)]
            for part, size in enumerate(sizes, start=1):
                add(f"{name}.conv{part}", f"{name}.bn{part}", *size)
            if index == 0 and (group > 1 or channels != out):
                add(f"{name}.downsample.0", f"{name}.downsample.1", out, channels, 1)
            channels = out
    return shapes


def draw_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32, from a seed that follows from the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", ".weight")):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.normal(0, 0.2, shape)
    return values.astype(np.float32)


def draw_images() -> np.ndarray:
    """uint8 [B, S, S, 3]."""
    return np.random.default_rng(0).integers(0, 256, [NUM_IMAGES, SIDE, SIDE, 3], np.uint8)


def compute_features(depth):
    import torch
    import torchvision

    model = getattr(torchvision.models, f"resnet{depth}")()
    model.fc = torch.nn.Identity()
    shapes = parameter_shapes(depth)
    found = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert found == shapes
    state = {name: torch.tensor(draw_parameter(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    inputs = (draw_images() / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        return model(torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()


if __name__ == "__main__":
    np.savez_compressed(PATH, **{f"resnet{depth}": compute_features(depth) for depth in DEPTHS})

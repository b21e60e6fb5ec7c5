"""Writes torchvision_crops.npz: how torchvision's RandomResizedCrop distributes its crops.

Run it where torch 2.14.1 and torchvision 0.29.1 are installed; `test_random_crops.py` reads the
result without them.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop

# (height, width, smallest area, largest area): CIFAR, ImageNet-like, and an image so wide that
# most attempts and sometimes all of them fail.
CASES = [(32, 32, 0.2, 1.0), (375, 500, 0.08, 1.0), (40, 160, 0.2, 1.0)]
NUM_CROPS = 40_000


def sample(height, width, low, high):
    """int32 [NUM_CROPS, 4]: top, left, height, width."""
    image = torch.zeros([3, height, width])
    crops = [
        RandomResizedCrop.get_params(image, [low, high], [3 / 4, 4 / 3]) for _ in range(NUM_CROPS)
    ]
    return np.array(crops, np.int32)


if __name__ == "__main__":
    torch.manual_seed(0)
    quantiles = np.linspace(0, 1, 201)
    arrays = {"cases": np.array(CASES), "num_crops": NUM_CROPS}
    for index, (height, width, low, high) in enumerate(CASES):
        crops = sample(height, width, low, high)
        area = crops[:, 2] * crops[:, 3] / (height * width)
        columns = {
            "top": crops[:, 0], "left": crops[:, 1], "height": crops[:, 2], "width": crops[:, 3],
            "area": area, "aspect": crops[:, 3] / crops[:, 2],
        }  # fmt: skip
        for name, values in columns.items():
            arrays[f"{index}_{name}_quantiles"] = np.quantile(values, quantiles)
            arrays[f"{index}_{name}_mean"] = values.mean()
    np.savez_compressed(Path(__file__).parent / "torchvision_crops.npz", **arrays)

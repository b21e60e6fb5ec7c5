"""The two-view input of torchvision, written as its users write it; input_pipeline.py measures it.

A `DataLoader` with one worker process per core applies the transforms of torchvision.transforms.v2
to each of two views. With --kind=tensor they work on uint8 tensors, which v2 recommends for speed;
with --kind=pillow on images of Pillow, which is not Pillow-SIMD. JPEG files are decoded by
torchvision.io or by Pillow. It runs in a separate environment without TensorFlow.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import io
from torchvision.transforms import v2

NUM_WORKERS = os.cpu_count() or 1
ENDLESS = 10**9
JITTER_PROBABILITY, GRAYSCALE_PROBABILITY = 0.8, 0.2


def create_policy(name):
    """The transforms after crop and flip, as a list."""
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=JITTER_PROBABILITY)
    gray = v2.RandomGrayscale(p=GRAYSCALE_PROBABILITY)
    return {
        "identity": [],
        "autoaugment": [v2.AutoAugment()],
        "randaugment": [v2.RandAugment(num_ops=2, magnitude=27)],  # Of 30, as 9 of 10.
        "simclr": [jitter, gray],
        "stacked_randaugment": [jitter, v2.RandAugment(num_ops=2, magnitude=30), gray],
    }[name]


class TwoViews(Dataset):
    """Two views of each image, uint8 [2, 3, S, S]; the images are repeated without end."""

    def __init__(self, images, kind, policy, size):
        self.images = images  # Paths of JPEG files, or arrays uint8 [S, S, 3].
        self.kind = kind
        to_tensor = [v2.PILToTensor()] if kind == "pillow" else []
        self.transform = v2.Compose([
            v2.RandomResizedCrop(size, antialias=False),
            v2.RandomHorizontalFlip(),
            *create_policy(policy),
            *to_tensor,
        ])  # fmt: skip

    def __len__(self):
        return ENDLESS

    def __getitem__(self, index):
        image = self._read(self.images[index % len(self.images)])
        return torch.stack([self.transform(image), self.transform(image)])

    def _read(self, image):
        if isinstance(image, str):
            if self.kind == "pillow":
                return Image.open(image).convert("RGB")
            return io.decode_image(io.read_file(image), mode=io.ImageReadMode.RGB)
        if self.kind == "pillow":
            return Image.fromarray(image)
        return torch.from_numpy(image).permute(2, 0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["tensor", "pillow"], required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--images", required=True, help="images.npy, or a folder of JPEG files")
    arguments = parser.parse_args()
    path = pathlib.Path(arguments.images)
    images = sorted(map(str, path.glob("*.jpg"))) if path.is_dir() else np.load(path)

    start = time.perf_counter()
    views = TwoViews(images, arguments.kind, arguments.policy, arguments.size)
    loader = DataLoader(views, arguments.batch_size, num_workers=NUM_WORKERS)
    batches = iter(loader)
    next(batches)
    print(json.dumps(time.perf_counter() - start), flush=True)
    for line in sys.stdin:
        for _ in range(2 * NUM_WORKERS):  # Skip the batches that are already in the buffers.
            next(batches)
        start, count = time.perf_counter(), 0
        for batch in batches:
            count += batch.shape[0] * 2
            elapsed = time.perf_counter() - start
            if elapsed > float(line):
                break
        # The CPU time of the workers is not measured.
        print(json.dumps([count / elapsed, None]), flush=True)


if __name__ == "__main__":
    main()

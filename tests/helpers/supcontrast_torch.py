"""SupContrast's networks in PyTorch, to write checkpoints as its training does.

    PYTHON_WITH_TORCH tests/helpers/supcontrast_torch.py --depth=18 --folder=somewhere

writes checkpoint.pth (random weights and batch norm statistics) and outputs.npz: images uint8,
the encoder's embeddings and the head's unit vectors. The modules have the names of
https://github.com/HobbitLong/SupContrast/blob/master/networks/resnet_big.py.

    cd tests/helpers
    PYTHON_WITH_TORCH supcontrast_torch.py --tiny=torch_checkpoint.pth
    PYTHON_WITH_TORCH supcontrast_torch.py --tiny=torch_checkpoint_legacy.pth --legacy

writes the few tensors that tests/test_torch_file.py reads where there is no PyTorch, in today's
format and in that from before PyTorch 1.6.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10


class Block(nn.Module):
    """Basic for depths below 50, else a bottleneck with the stride on its 3x3 convolution."""

    def __init__(self, channels, filters, stride, is_bottleneck):
        super().__init__()
        out = 4 * filters if is_bottleneck else filters
        if is_bottleneck:
            sizes = [(channels, filters, 1, 1), (filters, filters, 3, stride), (filters, out, 1, 1)]
        else:
            sizes = [(channels, filters, 3, stride), (filters, filters, 3, 1)]
        self.count = len(sizes)
        for part, (before, after, kernel, step) in enumerate(sizes, start=1):
            conv = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            setattr(self, f"conv{part}", conv)
            setattr(self, f"bn{part}", nn.BatchNorm2d(after))
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for part in range(1, self.count + 1):
            y = getattr(self, f"bn{part}")(getattr(self, f"conv{part}")(y))
            y = functional.relu(y) if part < self.count else y
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        is_bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for group, count in enumerate(BLOCKS[depth]):
            filters, blocks = 64 * 2**group, []
            for index in range(count):
                stride = 2 if group and not index else 1
                blocks.append(Block(channels, filters, stride, is_bottleneck))
                channels = filters * (4 if is_bottleneck else 1)
            setattr(self, f"layer{group + 1}", nn.Sequential(*blocks))
        self.num_features = channels

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        for group in range(1, 5):
            x = getattr(self, f"layer{group}")(x)
        return x.mean(dim=(2, 3))


class SupConResNet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.encoder = ResNet(depth)
        size = self.encoder.num_features
        self.head = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(inplace=True), nn.Linear(size, 128)
        )

    def forward(self, x):
        return functional.normalize(self.head(self.encoder(x)), dim=1)


def write_checkpoint(depth, folder):
    """As main_supcon.py on several GPUs: the encoder in DataParallel, options as a Namespace."""
    torch.manual_seed(depth)
    model = SupConResNet(depth)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.eval()
    images = np.random.default_rng(depth).integers(0, 256, [4, 32, 32, 3]).astype(np.uint8)
    inputs = (images / 255 - np.array(MEAN)) / np.array(STD)
    inputs = torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        embeddings, projections = model.encoder(inputs), model(inputs)
    np.savez(
        folder / "outputs.npz",
        images=images, embeddings=embeddings.numpy(), projections=projections.numpy(),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.encoder = nn.DataParallel(model.encoder)
    save(model.state_dict(), optimizer.state_dict(), folder / "checkpoint.pth")


def save(state, optimizer, path, *, legacy=False):
    options = argparse.Namespace(model="resnet", lr_decay_epochs=[700, 800], cosine=True, temp=0.1)
    content = {"opt": options, "model": state, "optimizer": optimizer, "epoch": 1000}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def write_tiny(path, legacy):
    numbers = torch.arange(24, dtype=torch.float32)
    state = {
        "encoder.module.plain": numbers.reshape(2, 3, 4),
        "encoder.module.transposed": numbers.reshape(4, 6).T,
        "encoder.module.part": numbers[5:9],
        "head.half": torch.tensor([0.5, -1.0], dtype=torch.float16),
        "head.scalar": torch.tensor(7),
        "head.parameter": nn.Linear(2, 1, bias=False).state_dict()["weight"] * 0 + 3,
    }
    save(state, {"state": {}, "param_groups": [{"lr": 0.05}]}, path, legacy=legacy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--legacy", action="store_true")
    arguments = parser.parse_args()
    if arguments.tiny:
        write_tiny(arguments.tiny, arguments.legacy)
    else:
        write_checkpoint(arguments.depth, arguments.folder)

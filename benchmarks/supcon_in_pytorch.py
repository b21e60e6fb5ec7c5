"""SupCon in PyTorch, written as SupContrast writes it; time_to_accuracy.py measures it.

A `DataLoader` with worker processes, the transforms of torchvision for each of two views, and the
loss with full matrices (https://github.com/HobbitLong/SupContrast). Encoder, initial values, views,
optimizer and schedule are those of the command that time_to_accuracy.py runs. After every epoch it
adds a line with the k-NN accuracy to a file, as that command does.
"""

import json
import math

import numpy as np
import torch
from peer_program import argument_parser, knn_accuracy
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

BATCH_SIZE, PEAK_RATE, TEMPERATURE = 64, 0.003, 0.1
NORMALIZE = transforms.Normalize([0.5] * 3, [0.5] * 3)  # To -1..1.


class TwoViews:
    """Applies a random transform twice."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        return [self.transform(image), self.transform(image)]


class Block(nn.Module):
    """A basic block of ResNet v1, whose shortcut is a projection."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.shortcut = conv_norm(before, after, 1, stride)
        self.first, self.second = conv_norm(before, after, 3, stride), conv_norm(after, after, 3)
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x):
        residual = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(residual + self.shortcut(x), inplace=True)


def conv_norm(before, after, kernel, stride=1):
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    deviation = math.sqrt(1 / (before * kernel**2)) / 0.8796  # That of the cut normal is 0.8796.
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-5, momentum=0.1))


def create_encoder():
    """The tiny encoder: float32 [B, 3, 32, 32] -> [B, 64]."""
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(conv_norm(3, 16, 3), nn.ReLU(inplace=True), *blocks, *pool)


def supcon_loss(projections, labels):
    """Eq. 2 of Khosla et al. 2020, times the temperature: [B, 2, D], [B] -> scalar."""
    rows = torch.cat(torch.unbind(projections, dim=1))
    labels = labels.repeat(2)
    not_self = ~torch.eye(len(rows), dtype=torch.bool)
    positives = (labels[:, None] == labels[None, :]) & not_self
    logits = rows @ rows.T / TEMPERATURE
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    log_sums = torch.log((logits.exp() * not_self).sum(dim=1, keepdim=True))
    means = (positives * (logits - log_sums)).sum(dim=1) / positives.sum(dim=1)
    return -TEMPERATURE * means.mean()


def embed(encoder, loader):
    encoder.eval()
    with torch.no_grad():
        parts = [(encoder(images).numpy(), labels.numpy()) for images, labels in loader]
    encoder.train()
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def main():
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    views = TwoViews(
        transforms.Compose(
            [
                transforms.RandomResizedCrop(32, scale=(0.5, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.ToTensor(),
                NORMALIZE,
            ]
        )
    )
    plain = transforms.Compose([transforms.ToTensor(), NORMALIZE])
    load = {"num_workers": arguments.workers, "persistent_workers": arguments.workers > 0}
    train = datasets.ImageFolder(arguments.data / "train", views)
    batches = DataLoader(train, BATCH_SIZE, shuffle=True, drop_last=True, **load)
    known, asked = (
        DataLoader(datasets.ImageFolder(arguments.data / split, plain), 256, **load)
        for split in ("train", "test")
    )

    encoder, head = create_encoder(), nn.Linear(64, 128, bias=False)
    nn.init.normal_(head.weight, std=0.01)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=PEAK_RATE, eps=1e-7)
    total, warmup = arguments.epochs * len(batches), len(batches)

    def rate(step):
        if step < warmup:
            return step / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with arguments.log.open("w") as log:
        for epoch in range(1, arguments.epochs + 1):
            for (first, second), labels in batches:
                features = functional.normalize(encoder(torch.cat([first, second])), dim=1)
                rows = functional.normalize(head(features), dim=1)
                loss = supcon_loss(torch.stack(rows.chunk(2), dim=1), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            accuracy = knn_accuracy(*embed(encoder, known), *embed(encoder, asked))
            line = {"epoch": epoch, "loss": loss.item(), "knn_accuracy": accuracy}
            print(json.dumps(line), file=log, flush=True)


if __name__ == "__main__":
    main()

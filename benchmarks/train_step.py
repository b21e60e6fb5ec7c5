"""Images per second of the complete pretraining step on the CPU, compared with plain PyTorch.

    .venv/bin/python benchmarks/train_step.py --torch_env=FOLDER
    .venv/bin/python benchmarks/train_step.py --overhead

The first form compares training steps: ResNet with the CIFAR stem at 32 px, two views, contrastive
loss and momentum; forward, backward and update on a batch in memory. The comparison is the same
model and loss in plain PyTorch (channels-last), which this script installs in a separate
environment. Every view counts as an image, so 128 images are 64 examples. The two are measured
alternately, and each is paused while the other is measured. Compare the ratios. The memory is the
peak of the process, less what it has after the import of the framework.

The second form measures the overhead of the training loop: the rate of the command, including
input pipeline and logging, compared with the bare step on one batch in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import records
from paused import REPOSITORY, PausedWorker, answer_rates

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
IMAGE_SIZE, NUM_CLASSES, TEMPERATURE = 32, 10, 0.1
TORCH = ["--extra-index-url", "https://download.pytorch.org/whl/cpu", "torch", "torchvision"]
OVERHEAD_FLAGS = (
    "--mode=pretrain", "--dataset=digits", "--image_size=32", "--encoder=resnet_v1",
    "--resnet_depth=18", "--first_conv_kernel_size=3", "--first_conv_stride=1",
    "--nouse_initial_max_pool", "--pretrain_optimizer=momentum", "--batch_size=64",
    "--pretrain_weight_decay=0", "--noonline_probe", "--knn_interval_epochs=0",
    "--pretrain_epochs=1000", "--summary_interval_steps=5", "--save_interval_steps=1000",
)  # fmt: skip


def create_encoder(depth, **options):
    """A ResNet with the CIFAR stem at 32 px."""
    from supcon_tf.models import contrastive

    return contrastive.create_encoder(
        "resnet_v1",
        depth=depth,
        image_size=IMAGE_SIZE,
        first_conv_kernel_size=3,
        first_conv_stride=1,
        use_initial_max_pool=False,
        **options,
    )


def tensorflow_step(depth, images, precision):
    """Builds the step like the command, and returns a function that runs it on one batch."""
    import keras
    import numpy as np
    import tensorflow as tf

    from supcon_tf.losses import supcon
    from supcon_tf.models import contrastive
    from supcon_tf.training import memory, memory_reservation, optimizers, steps

    keras.mixed_precision.set_global_policy(PRECISIONS[precision])
    encoder = create_encoder(depth)
    step = steps.ContrastiveStep(
        model=contrastive.ContrastiveModel(encoder),
        loss=supcon.SupConLoss(temperature=TEMPERATURE, reduction=None),
        optimizer=optimizers.create_optimizer("momentum", 0.1),
        global_batch_size=images // 2,
    )
    pixels = np.random.default_rng(0).integers(0, 256, [images // 2, 2, 32, 32, 3], np.uint8)
    batch = {"image": tf.constant(pixels), "label": tf.range(images // 2) % NUM_CLASSES}
    needed = memory.estimate(step, images_per_replica=images, eval_images_per_replica=0)
    memory_reservation.reserve(needed.missing)
    run = tf.function(step)
    return lambda: float(run(batch)["loss"])


def torch_step(depth, images, precision):
    """The same in PyTorch: ResNet v1 with the stride in the 3x3 convolution, and a dense loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    def conv_norm(before, after, kernel, stride=1):
        conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after))

    class Block(nn.Module):
        def __init__(self, before, filters, stride, project):
            super().__init__()
            after = filters if depth < 50 else 4 * filters
            if depth < 50:
                parts = [conv_norm(before, filters, 3, stride), conv_norm(filters, filters, 3)]
            else:
                parts = [conv_norm(before, filters, 1), conv_norm(filters, filters, 3, stride)]
                parts.append(conv_norm(filters, after, 1))
            self.parts = nn.ModuleList(parts)
            self.shortcut = conv_norm(before, after, 1, stride) if project else nn.Identity()

        def forward(self, x):
            shortcut = self.shortcut(x)
            for part in self.parts[:-1]:
                x = functional.relu(part(x), inplace=True)
            return functional.relu(self.parts[-1](x) + shortcut, inplace=True)

    layers, channels = [conv_norm(3, 64, 3), nn.ReLU(inplace=True)], 64
    for group, num_blocks in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)):
        for index in range(num_blocks):
            stride = 2 if group > 0 and index == 0 else 1
            layers.append(Block(channels, 64 * 2**group, stride, project=index == 0))
            channels = 64 * 2**group * (1 if depth < 50 else 4)
    encoder = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    head = nn.Linear(channels, 128, bias=False)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    pixels = torch.randint(0, 256, [images, 3, IMAGE_SIZE, IMAGE_SIZE], dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = (torch.arange(images // 2) % NUM_CLASSES).repeat(2)
    not_self = ~torch.eye(images, dtype=torch.bool)
    positives = (labels[:, None] == labels[None, :]) & not_self

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            features = encoder(pixels.float() / 127.5 - 1.0).mean(dim=(2, 3))
            rows = head(functional.normalize(features, dim=1))
        rows = functional.normalize(rows.float(), dim=1)
        logits = (rows @ rows.T / TEMPERATURE).masked_fill(~not_self, -torch.inf)
        log_probs = logits - torch.logsumexp(logits, dim=1, keepdim=True)
        sums = log_probs.masked_fill(~positives, 0.0).sum(dim=1)
        loss = -TEMPERATURE * (sums / positives.sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def serve(side, depth, images, precision):
    """Prints the GB of the idle process, reads numbers of seconds and answers as `answer_rates`."""
    if side == "ours":
        import keras  # noqa: F401 (Imports TensorFlow.)
    else:
        import torch  # noqa: F401
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    idle = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    run = (tensorflow_step if side == "ours" else torch_step)(depth, images, precision)
    run()
    run()
    print(json.dumps(idle), flush=True)
    answer_rates(run, images)


def compare(torch_python, depths, sizes, rounds, seconds, results):
    """Measures every case and prints the table."""
    peer = {"peer_versions": records.versions(torch_python, ["torch"])}
    rows = []
    for depth in depths:
        for images in sizes:
            for precision in PRECISIONS:
                case = {"depth": depth, "images": images, "precision": precision}
                idle, sides = measure(torch_python, rounds, seconds, **case)
                rows.append({**case, "idle_gb": idle, "sides": sides})
                records.write(results, rows, **peer)
                print(f"{case} is measured.", file=sys.stderr, flush=True)
    print(create_table({"rows": rows}))


def create_table(facts):
    """Median images per second and memory above an idle process of both sides, and the ratios."""
    rows = []
    for row in facts["rows"]:
        rates, memory = {}, {}
        for side, found in row["sides"].items():
            rates[side] = statistics.median(rate for rate, _ in found)
            memory[side] = found[-1][1] - row["idle_gb"][side]
        case = [f"ResNet-{row['depth']}", str(row["images"]), row["precision"]]
        cells = [f"{rates[side]:.1f}, {memory[side]:.2f}" for side in ("ours", "PyTorch")]
        ratios = [f"{found['ours'] / found['PyTorch']:.2f}" for found in (rates, memory)]
        rows.append([*case, *cells, *ratios])
    head = ["encoder", "images", "precision", "supcon_tf: images/s, GB", "PyTorch: images/s, GB"]
    return records.table([*head, "speed ratio", "memory ratio"], rows, text_columns=3)


def measure(torch_python, rounds, seconds, *, depth, images, precision):
    """Returns the GB of each idle side, and the [images per second, peak GB] of each round."""
    pythons = {"ours": sys.executable, "PyTorch": torch_python}
    workers = {
        side: PausedWorker([python, __file__, f"--worker={side},{depth},{images},{precision}"])
        for side, python in pythons.items()
    }
    answers = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            answers[side].append(worker.ask(seconds))
    for worker in workers.values():
        worker.kill()
    return {side: worker.greeting for side, worker in workers.items()}, answers


def overhead(rounds, results):
    """Measures the command and the bare step alternately, and prints their rates."""
    command_rates, bare_rates = [], []
    bare = PausedWorker([sys.executable, __file__, "--worker=ours,18,128,float32"])
    with tempfile.TemporaryDirectory() as folder:
        command = RunningCommand(folder)
        for _ in range(rounds):
            bare_rates.append(bare.ask(20)[0])
            command_rates += command.rates(3)
        command.kill()
    bare.kill()
    rows = [
        {"name": "bare step, ResNet-18, 128 images", "rates": bare_rates},
        {"name": "command, same step", "rates": command_rates},
    ]
    records.write(results, rows)
    print(create_overhead_table({"rows": rows}))


def create_overhead_table(facts):
    """Both rates, and by how much the command is slower."""
    rows = [[row["name"], records.spread(row["rates"], "{:.1f}")] for row in facts["rows"]]
    bare, command = (statistics.median(row["rates"]) for row in facts["rows"])
    rows.append(["overhead", f"{1 - command / bare:.1%}"])
    return records.table(["", "images/s"], rows)


class RunningCommand:
    """The real command, which is paused except while its rates are read from its log.

    Args:
        folder: The folder for its files.
    """

    def __init__(self, folder):
        self._log = pathlib.Path(folder) / "pretrain" / "metrics.jsonl"
        command = [sys.executable, "-m", "supcon_tf.main", *OVERHEAD_FLAGS]
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
        self._process = subprocess.Popen(
            [*command, f"--model_dir={folder}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_for_lines(2)  # The first line includes the tracing of the graph.
        self._process.send_signal(signal.SIGSTOP)

    def rates(self, count):
        """Returns the images per second of some log lines, without the first line after a pause."""
        before = len(self._lines())
        self._process.send_signal(signal.SIGCONT)
        self._wait_for_lines(before + count + 1)
        self._process.send_signal(signal.SIGSTOP)
        # The command counts examples, which have two views each.
        return [2 * line["images_per_second"] for line in self._lines()[before + 1 :]]

    def kill(self):
        self._process.kill()
        self._process.wait()

    def _lines(self):
        text = self._log.read_text() if self._log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def _wait_for_lines(self, count):
        while len(self._lines()) < count:
            if self._process.poll() is not None:
                raise RuntimeError("The command exited early. Run it by itself to see why.")
            time.sleep(0.1)


def install_torch(folder, *packages):
    """Creates an environment with PyTorch, or adds what it lacks; returns its Python.

    Args:
        folder: Of the environment.
        *packages: What to install besides torch, torchvision and NumPy.
    """
    python = pathlib.Path(folder).absolute() / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [python, "-m", "pip", "install", "-q", *TORCH, "numpy", *packages]
    subprocess.run(command, check=True)
    return str(python)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_env", help="environment for PyTorch; created if missing")
    parser.add_argument(
        "--overhead", action="store_true", help="measure the overhead of the loop instead"
    )
    parser.add_argument("--depths", default="18,50")
    parser.add_argument("--images", default="128,256", help="images per step, counting every view")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of one measurement")
    parser.add_argument("--results", help="JSON file for every round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, depth, images, precision = arguments.worker.split(",")
        serve(side, int(depth), int(images), precision)
    elif arguments.overhead:
        overhead(arguments.rounds, arguments.results)
    elif arguments.torch_env:
        depths, sizes = (
            [int(value) for value in text.split(",")]
            for text in (arguments.depths, arguments.images)
        )
        torch_python = install_torch(arguments.torch_env)
        compare(torch_python, depths, sizes, arguments.rounds, arguments.seconds, arguments.results)
    else:
        parser.error("set --torch_env=FOLDER or --overhead")


if __name__ == "__main__":
    main()

"""Views per second of two-view input pipelines: this package and its peers.

    .venv/bin/python benchmarks/input_pipeline.py --peer_env=FOLDER --torch_env=FOLDER

Each pipeline crops, resizes, flips and applies a policy, with two views per image, to images in
memory or JPEG files of 500 x 375 pixels. JPEG files of 4000 x 3000 pixels, which are enlarged, are
measured without a policy. "fast decode" is the reference pipeline with --fast_decode. "tf-models"
is the AutoAugment and RandAugment of tf-models-official 2.20 (which the released SupCon code
imports), applied to one image at a time inside `Dataset.map`. It needs Keras 2, so the script
installs it in a separate environment. "Pillow" does the same work in one `tf.py_function` per
image. "torchvision" and "torchvision on Pillow" are torchvision_input.py.

Every pipeline runs in its own process, which is paused while another one is measured. Each round
measures all pipelines, so that a temporary slowdown of the machine affects all of them. Compare
the ratios, not the absolute numbers. Rows that are already in the --results file are not measured
again.

    .venv/bin/python benchmarks/input_pipeline.py --difference

compares the views of --fast_decode with the exact ones, in levels of 0 to 255.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import records
from paused import REPOSITORY, PausedWorker
from train_step import install_torch

PEER_REQUIREMENTS = (
    ["--no-deps", "tf-models-official==2.20.0"],
    ["tensorflow==2.20.*", "tf-keras==2.20.*", "pillow", "scikit-learn"],
)
SOURCES = {  # Side of the views, batch size, and width and height of JPEG files.
    "memory 32 px": (32, 512, None),
    "memory 224 px": (224, 64, None),
    "JPEG 224 px": (224, 64, (500, 375)),
    "large JPEG 224 px": (224, 16, (4000, 3000)),
}
LARGE = "large JPEG 224 px"
POLICIES = ("identity", "autoaugment", "randaugment", "simclr", "stacked_randaugment")
MAGNITUDES = {"randaugment": 9.0}
OURS = ("reference", "pillow")  # The two modes of this package.
FAST = "fast decode"
TORCHVISION = {"torchvision": "tensor", "torchvision on Pillow": "pillow"}
SIDES = (*OURS, FAST, "tf-models", "Pillow", *TORCHVISION)
NUM_THREADS = os.cpu_count()
NOISE_LEVELS = 4  # Standard deviation, of 255.


# The pipelines. Each one returns a dataset of uint8 [B, 2, S, S, 3].


def random_images(size, count):
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, [count, size, size, 3], np.uint8)


def write_photographs(folder, count, size):
    """Writes JPEG files of a size: random crops of scikit-learn's two photographs, 640 x 427.

    Crops that are enlarged get noise, because a file of a camera holds more than a smooth image.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    is_enlarged = size[0] > photos[0].width
    for index in range(count):
        photo, width = photos[index % 2], rng.uniform(300, 560)
        left = rng.uniform(0, photo.width - width)
        top = rng.uniform(0, photo.height - width * 0.75)
        box = (left, top, left + width, top + width * 0.75)
        photo = photo.resize(size, Image.Resampling.BILINEAR, box)
        if is_enlarged:
            noise = rng.normal(0, NOISE_LEVELS, (*photo.size[::-1], 3))
            photo = Image.fromarray(np.clip(photo + noise, 0, 255).astype(np.uint8))
        photo.save(folder / f"{index}.jpg", quality=90)


def paths_of(folder, jpeg_size):
    """The JPEG files of a size."""
    return sorted(str(path) for path in folder_of(folder, jpeg_size).iterdir())


def our_dataset(source, policy_name, side, folder):
    """The complete pipeline of the command: shuffle, crop, flip and augment."""
    import numpy as np

    from supcon_tf.augment import policies
    from supcon_tf.data import pipeline, sources

    size, batch_size, jpeg_size = SOURCES[source]
    labels, names = np.arange(batch_size, dtype=np.int32) % 2, ("a", "b")
    if jpeg_size:
        images = sources.FileSource(tuple(paths_of(folder, jpeg_size)), labels, names)
    else:
        images = sources.ArraySource(random_images(size, batch_size), labels, names)
    magnitude = MAGNITUDES.get(policy_name, 0.5)
    batches = pipeline.create_train_batches(
        images,
        policy=policies.create_policy(
            policy_name, magnitude=magnitude, compat="reference" if side == FAST else side
        ),
        batch_size=batch_size,
        image_size=size,
        seed=0,
        fast_decode=side == FAST,
    )
    return batches.map(lambda batch: batch["image"])


def models_dataset(source, policy_name, folder):
    import tensorflow as tf
    from official.legacy.image_classification import augment

    distort = {
        "identity": lambda image: image,
        "autoaugment": augment.AutoAugment().distort,
        "randaugment": augment.RandAugment(magnitude=MAGNITUDES["randaugment"]).distort,
    }[policy_name]

    size = SOURCES[source][0]

    def view(image):
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.08, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        crop = tf.image.resize(tf.slice(image, begin, extent), [size, size])
        image = tf.ensure_shape(tf.cast(crop, tf.uint8), [size, size, 3])
        return distort(tf.image.random_flip_left_right(image))

    return _per_image(source, folder, lambda image: tf.stack([view(image), view(image)]))


def pillow_dataset(source, policy_name, folder):
    import numpy as np
    import tensorflow as tf
    from PIL import Image, ImageOps

    sys.path.insert(0, str(REPOSITORY / "tests"))
    from helpers import pillow_ops

    from supcon_tf.augment import levels, tables

    random, size = np.random.default_rng(0), SOURCES[source][0]

    def calls():
        if policy_name == "autoaugment":
            pair = tables.AUTOAUGMENT_V0[random.integers(25)]
            return [(name, level) for name, p, level in pair if random.random() < p]
        return [(str(random.choice(tables.RANDAUGMENT)), 9) for _ in range(2)]

    def view(image):
        area = random.uniform(0.08, 1) * image.width * image.height
        ratio = random.uniform(3 / 4, 4 / 3)
        width = min((area * ratio) ** 0.5, image.width)
        height = min((area / ratio) ** 0.5, image.height)
        left = random.uniform(0, image.width - width)
        top = random.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
        image = ImageOps.mirror(image) if random.random() < 0.5 else image
        for name, level in calls() if policy_name != "identity" else ():
            call = levels.Call(name, level, int(random.choice([-1, 1])))
            argument = levels.argument(
                call, size=size, constants=levels.RANDAUGMENT_CONSTANTS, compat="pillow"
            )
            if name == "Cutout":
                image = pillow_ops.cutout(image, argument, random.integers(0, size, 2).tolist())
            else:
                image = pillow_ops.OPS[name](image, argument)
        return np.asarray(image)

    def both(image):
        image = Image.fromarray(image.numpy())
        return np.stack([view(image), view(image)])

    return _per_image(source, folder, lambda image: tf.py_function(both, [image], tf.uint8))


def _per_image(source, folder, two_views):
    import tensorflow as tf

    size, batch_size, jpeg_size = SOURCES[source]
    if jpeg_size:
        dataset = tf.data.Dataset.from_tensor_slices(paths_of(folder, jpeg_size)).repeat()
        dataset = dataset.map(
            lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3),
            num_parallel_calls=NUM_THREADS,
        )
    else:
        dataset = tf.data.Dataset.from_tensor_slices(random_images(size, batch_size)).repeat()
    dataset = dataset.map(two_views, num_parallel_calls=NUM_THREADS)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


def create_dataset(side, source, policy, folder):
    if side == "tf-models":
        return models_dataset(source, policy, folder)
    if side == "Pillow":
        return pillow_dataset(source, policy, folder)
    return our_dataset(source, policy, side, folder)


def exists(side, source, policy):
    """Whether a side is measured with a source and a policy.

    "fast decode" is measured only on JPEG files without a policy.
    """
    if side == FAST:
        return SOURCES[source][2] is not None and policy == "identity"
    has_all = side in OURS or side in TORCHVISION
    return has_all or policy in ("identity", "autoaugment", "randaugment")


# One process per pipeline.


def serve(side, source, policy, folder):
    """Prints the seconds to the first batch, then views per second for every input line.

    Each answer is a pair: views per second of wall time and views per second of CPU time, which is
    None if it is not measured.
    """
    import tensorflow as tf

    tf.constant(0)  # Do not count the start of TensorFlow as part of the first batch.
    start = time.perf_counter()
    batches = iter(create_dataset(side, source, policy, folder))
    next(batches)
    print(json.dumps(time.perf_counter() - start), flush=True)
    for line in sys.stdin:
        for _ in range(4):  # Skip the batches that are already in the buffers.
            next(batches)
        start, cpu_start, views = time.perf_counter(), time.process_time(), 0
        for batch in batches:
            views += batch.shape[0] * 2
            elapsed = time.perf_counter() - start
            if elapsed > float(line):
                break
        cpu_seconds = time.process_time() - cpu_start
        print(json.dumps([views / elapsed, views / cpu_seconds]), flush=True)


class Worker(PausedWorker):
    """The process of one pipeline and its measured rates."""

    def __init__(self, side, source, policy, pythons, folder):
        command = [
            pythons[side],
            __file__,
            f"--worker={json.dumps([side, source, policy, folder])}",
        ]
        if side in TORCHVISION:
            size, batch_size, jpeg_size = SOURCES[source]
            script = pathlib.Path(__file__).with_name("torchvision_input.py")
            images = folder_of(folder, jpeg_size) if jpeg_size else f"{folder}/{size}.npy"
            options = {"kind": TORCHVISION[side], "policy": policy, "size": size,
                       "batch_size": batch_size, "images": images}  # fmt: skip
            command = [pythons[side], script, *(f"--{k}={v}" for k, v in options.items())]
        super().__init__(command)
        self.first_batch_seconds = self.greeting
        self.rates = []

    def measure(self, seconds):
        self.rates.append(self.ask(seconds))


def install_peer(path):
    """Creates an environment with tf-models-official, or adds what it lacks."""
    if not (path / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    for requirements in PEER_REQUIREMENTS:
        subprocess.run([path / "bin" / "pip", "install", "-q", *requirements], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_env", help="environment for tf-models-official; created if missing")
    parser.add_argument("--torch_env", help="environment for torchvision; created if missing")
    parser.add_argument("--source", action="append", choices=list(SOURCES), help="all by default")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="all by default")
    parser.add_argument("--side", action="append", choices=SIDES, help="all by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each pipeline")
    parser.add_argument("--results", help="JSON file for every round")
    parser.add_argument(
        "--difference", action="store_true", help="compare the views of --fast_decode instead"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Only needed by tf-models-official.
        serve(*json.loads(arguments.worker))
        return
    if arguments.difference:
        print_differences()
    else:
        measure_all(arguments)


def print_differences():
    """Prints by how much the views of --fast_decode differ from the exact ones of one batch."""
    import numpy as np

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder)
        for source in (name for name, (*_, jpeg_size) in SOURCES.items() if jpeg_size):
            exact, fast = (
                next(iter(our_dataset(source, "identity", side, folder))).numpy().astype(int)
                for side in ("reference", FAST)
            )
            differences = np.abs(exact - fast)
            is_other = differences.max(axis=(2, 3, 4)) > 0
            rows.append([source, f"{is_other.mean():.0%}", f"{differences.mean():.1f}",
                         str(differences.max())])  # fmt: skip
    head = ["source", "views that differ", "mean difference", "largest difference"]
    print(records.table(head, rows))


def measure_all(arguments):
    """Measures every pipeline in turns, and prints the table."""
    pythons = find_pythons(arguments)
    sides = [side for side in arguments.side or SIDES if side in pythons]
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder)
        rows = measure_rows(arguments, sides, pythons, folder)
    print(create_table({"rows": rows}))


def find_pythons(arguments):
    """Installs the peers whose environment is given; returns the Python of each side."""
    pythons = dict.fromkeys([*OURS, FAST, "Pillow"], sys.executable)
    if arguments.peer_env:
        install_peer(pathlib.Path(arguments.peer_env))
        pythons["tf-models"] = pathlib.Path(arguments.peer_env) / "bin/python"
    if arguments.torch_env:
        pythons |= dict.fromkeys(TORCHVISION, install_torch(arguments.torch_env))
    return pythons


def policies_of(source):
    """The policies: only identity for large files, because decoding takes most of the time."""
    return POLICIES[:1] if source == LARGE else POLICIES


def peer_versions(pythons):
    """The versions of the other libraries that are measured."""
    packages = {"tf-models": "tf-models-official", "torchvision": "torchvision", "Pillow": "pillow"}
    return {
        package: records.versions(pythons[side], [package])[package]
        for side, package in packages.items()
        if side in pythons
    }


def write_images(folder):
    """Writes the images of all sources to a folder, for the programs of other environments."""
    import numpy as np

    for size, batch_size, jpeg_size in SOURCES.values():
        if jpeg_size:
            folder_of(folder, jpeg_size).mkdir()
            write_photographs(folder_of(folder, jpeg_size), batch_size, jpeg_size)
        else:
            np.save(pathlib.Path(folder) / f"{size}.npy", random_images(size, batch_size))


def folder_of(folder, jpeg_size):
    """The folder of the JPEG files of a width and height."""
    return pathlib.Path(folder) / "x".join(map(str, jpeg_size))


def measure_rows(arguments, sides, pythons, folder):
    """Measures every source and policy; returns the rows of the results."""
    results = arguments.results and pathlib.Path(arguments.results)
    rows = json.loads(results.read_text())["rows"] if results and results.exists() else []
    finished = {(row["source"], row["policy"]) for row in rows}
    for source in arguments.source or SOURCES:
        for policy in arguments.policy or policies_of(source):
            if (source, policy) in finished:
                continue
            workers = {
                side: Worker(side, source, policy, pythons, folder)
                for side in sides
                if exists(side, source, policy)
            }
            for _ in range(arguments.rounds):
                for worker in workers.values():
                    worker.measure(arguments.seconds * (4 if source == LARGE else 1))
            for worker in workers.values():
                worker.kill()
            found = {
                side: {"first_batch_seconds": worker.first_batch_seconds, "rates": worker.rates}
                for side, worker in workers.items()
            }
            rows.append({"source": source, "policy": policy, "sides": found})
            records.write(arguments.results, rows, peer_versions=peer_versions(pythons))
            print(f"{source}, {policy} is measured.", file=sys.stderr, flush=True)
    return rows


def create_table(facts):
    """Two tables: the ratios of each row, and the median views per second of every side."""
    sides = [side for side in SIDES if any(side in row["sides"] for row in facts["rows"])]
    identities = {
        row["source"]: _median(row, "reference")
        for row in facts["rows"]
        if row["policy"] == "identity" and "reference" in row["sides"]
    }
    ratios = ["reference / tf-models", "reference / torchvision", "fast decode / reference"]
    names = [[row["source"], row["policy"]] for row in facts["rows"]]
    compared = [_ratios(row, identities) for row in facts["rows"]]
    rates = [[_rate(row, side) for side in sides] for row in facts["rows"]]
    return (
        records.table(
            ["source", "policy", *ratios, "of identity"],
            [[*name, *cells] for name, cells in zip(names, compared, strict=True)],
            text_columns=2,
        )
        + "\n\nThe ratios are of views per second of wall time; those in parentheses are of CPU "
        + "time, which other processes affect less. The ratio to torchvision uses the faster of "
        + "its two variants. The last column is the rate of `reference` divided by its rate with "
        + "`identity`.\n\nViews per second, with two views per image. The seconds to the first "
        + "batch are in parentheses:\n\n"
        + records.table(
            ["source", "policy", *sides],
            [[*name, *cells] for name, cells in zip(names, rates, strict=True)],
            text_columns=2,
        )
    )


def _median(row, side, kind=0):
    """Median of the views per second of wall time (0) or CPU time (1)."""
    return statistics.median(rate[kind] for rate in row["sides"][side]["rates"])


def _rate(row, side):
    found = row["sides"].get(side)
    return f"{_median(row, side):,.0f} ({found['first_batch_seconds']:.1f} s)" if found else ""


def _ratios(row, identities):
    """The ratios of a row, empty where a side was not measured."""
    measured = set(row["sides"])
    if "reference" not in measured:
        return [""] * 4
    reference, cells = _median(row, "reference"), [""] * 3
    if "tf-models" in measured:
        wall, cpu = (
            _median(row, "reference", kind) / _median(row, "tf-models", kind) for kind in (0, 1)
        )
        cells[0] = f"{wall:.1f} ({cpu:.1f})"
    if peers := [_median(row, side) for side in TORCHVISION if side in measured]:
        cells[1] = f"{reference / max(peers):.1f}"
    if FAST in measured:
        cells[2] = f"{_median(row, FAST) / reference:.2f}"
    identity = identities.get(row["source"])
    return [*cells, f"{reference / identity:.0%}" if identity else ""]


if __name__ == "__main__":
    main()

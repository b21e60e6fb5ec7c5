"""The 15 corruptions of ImageNet-C at 5 severities, by the functions of TensorFlow Datasets.

Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261. The functions take uint8 images
[S, S, 3] and draw from NumPy's global generator, which is seeded here for each image, so that an
image is corrupted in the same way whatever the batch, the worker process or the run.

Importing this module imports no TensorFlow, so that worker processes start quickly.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np

# In the order of the paper's table: noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# The only side, in pixels, that TFDS' snow and frost accept.
WEATHER_SIDE = 224
# The program that TFDS' motion blur and snow start.
PROGRAM = "imagemagick"


def reasons_not_to_run(image_size: int) -> dict[str, str]:
    """Returns the corruptions that cannot run on this machine, each with the reason.

    Args:
        image_size: Side of the images in pixels.

    Raises:
        ValueError: If a package is missing that the functions need.
    """
    module = _load_functions()
    found = {}
    no_program = f"it starts a program named {PROGRAM}, which is not on the PATH"
    other_size = f"it needs images of {WEATHER_SIDE} px, not {image_size} px"
    for name in ("motion_blur", "snow"):
        if shutil.which(PROGRAM) is None:
            found[name] = no_program
    if not module.FROST_FILENAMES:
        found["frost"] = (
            "its pictures of frost are missing, which TensorFlow Datasets downloads only while it "
            "prepares imagenet2012_corrupted"
        )
    if image_size != WEATHER_SIDE:
        found |= {"snow": other_size, "frost": other_size}
    for name in {"motion_blur", "snow"} - set(found):
        problem = _problem_with_program(getattr(module, name), image_size)
        if problem:
            found[name] = problem
    return {name: found[name] for name in CORRUPTIONS if name in found}


def _problem_with_program(function, image_size):
    """Why the function fails on a gray image, which the program may store without colors."""
    image = np.full([image_size, image_size, 3], 128, np.uint8)
    try:
        shape = function(image, 1).shape
    except Exception as error:  # Whatever the program and the decoder of its output raise.
        return f"{PROGRAM} or the reading of its output failed ({type(error).__name__}: {error})"
    return None if shape == image.shape else f"it made an image of shape {shape}"


def corrupt_images(
    images: np.ndarray, indices: np.ndarray, name: str, severity: int, *, seed: int = 0
) -> np.ndarray:
    """Corrupts each image by itself.

    The random numbers of an image depend on (seed, name, severity, index) only.

    Args:
        images: uint8 [B, S, S, 3].
        indices: int [B], the place of each image in the dataset. Images with a negative index are
            padding and stay as they are.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: At least 0.

    Returns:
        uint8 [B, S, S, 3].

    Raises:
        ValueError: If there is no such corruption or severity, or if a package is missing.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"Got the corruption {name!r} with severity {severity}: expected one of "
            f"{', '.join(CORRUPTIONS)} and a severity from 1 to 5."
        )
    function = getattr(_load_functions(), name)
    results = np.array(images)
    number = CORRUPTIONS.index(name)
    for row, index in enumerate(np.asarray(indices).tolist()):
        if index >= 0:
            with _seeded(np.random.SeedSequence([seed, number, severity, index])):
                results[row] = function(images[row], severity)
    return results


def worker_processes(count: int) -> ProcessPoolExecutor:
    """Creates a pool of new processes, because TensorFlow's threads do not survive a fork."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def corrupt_in_parallel(
    executor: Executor,
    num_parts: int,
    images: np.ndarray,
    indices: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Returns what `corrupt_images` returns, computed by several worker processes.

    Args:
        executor: The pool of processes. Threads would share NumPy's generator.
        num_parts: Number of parts that the batch is cut into.
        images, indices, name, severity, seed: See `corrupt_images`.
    """
    work = functools.partial(corrupt_images, name=name, severity=severity, seed=seed)
    parts = zip(np.array_split(images, num_parts), np.array_split(indices, num_parts), strict=True)
    return np.concatenate(list(executor.map(work, *zip(*parts, strict=True))))


@contextlib.contextmanager
def _seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seeds every generator that the functions draw from, and restores NumPy's global one."""
    util: Any = importlib.import_module("skimage.util")  # An extra, see `_load_functions`.
    state = np.random.get_state()
    random_noise = util.random_noise
    np.random.seed(sequence.generate_state(4))
    # scikit-image draws from a generator that is seeded by the operating system unless it gets one.
    util.random_noise = functools.partial(random_noise, rng=np.random.default_rng(sequence))
    try:
        yield
    finally:
        util.random_noise = random_noise
        np.random.set_state(state)


@functools.cache
def _load_functions() -> ModuleType:
    for name in ("cv2", "scipy", "skimage"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"The corruptions need the package {name}, which cannot be imported ({error}). "
                "Install what they need with: pip install 'supcon-tf[robustness]'"
            ) from error
    return importlib.import_module("tensorflow_datasets.image_classification.corruptions")

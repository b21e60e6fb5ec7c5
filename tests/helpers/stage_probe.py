"""What a stage makes of its flags: first batch, weights, loss, settings; without training."""

import contextlib
import functools
import hashlib
import io
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from helpers.command import run_inside
from helpers.replicas import split
from supcon_tf import strategies
from supcon_tf.data import pipeline
from supcon_tf.evaluation import corruptions, predictions
from supcon_tf.training import loop

# In the order in which a stage comes to them. `observe` stops after the last one that is wanted.
START = ("split_cpu", "deterministic", "strategy", "tpu", "processes", "refused", "said")
SETTINGS = (
    "rates", "steps_per_loop", "summary_interval_steps", "save_interval_steps",
    "evaluate_interval_steps", "jit_compile", "profile_steps", "cache_mb", "max_to_keep", "stopped",
)  # fmt: skip
STEP = ("batch", "initial", "loss", "weights")


# Collectives of a second MirroredStrategy in a process meet the keys of the first one's.
@functools.cache
def _create_strategy(name, **options):
    if name == "mirrored":  # A step on two replicas is traced in half the time of one on all four.
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return _create_any(name, **options)


_create_any = strategies.create_strategy


_loaded = {}
_load_model = keras.models.load_model


def _load_once(path):
    """One model for all equal files: what only predicts does not change it."""
    with open(path, "rb") as file:
        key = hashlib.sha256(file.read()).digest()
    if key not in _loaded:
        _loaded[key] = _load_model(path)
    return _loaded[key]


class Enough(BaseException):
    """Ends a stage; no `except Exception` catches it."""


def digest(value):
    """A hash of nested arrays: what they are called, their shapes and their bytes."""
    arrays = tf.nest.map_structure(np.asarray, value)
    described = tf.nest.map_structure(lambda array: (str(array.dtype), array.shape), arrays)
    result = hashlib.sha256(repr(described).encode())
    for array in tf.nest.flatten(arrays):
        result.update(array.tobytes())
    return result.hexdigest()


def observe(*arguments, until):
    """Runs the command up to the observation `until`; returns all observations by name."""
    seen, said = {}, io.StringIO()

    def see(name, value):
        seen[name] = value
        if name == until:
            raise Enough

    create_strategy = _create_strategy
    create_batches = pipeline.create_train_batches

    def creating_strategy(*args, **options):
        strategy = create_strategy(*args, **options)
        see("strategy", (type(strategy).__name__, strategy.num_replicas_in_sync))
        if until in START[: START.index("strategy")]:
            raise Enough  # What comes before the strategy was not seen.
        return strategy

    def training(*, strategy, step, create_batches, checkpoints, schedule, total_steps, **options):
        rates = [float(schedule(number)) for number in range(total_steps)]
        for name in SETTINGS[1:-3]:
            see(name, options.get(name))
        see("cache_mb", getattr(getattr(step, "loss", None), "cache_mb", None))
        see("max_to_keep", checkpoints.max_to_keep)
        see("rates", rates)
        if until == "evaluated" and options.get("evaluate"):
            options["evaluate"]()
        if until == "refused":
            create_batches(0, 0, 1)
        if until == "asked":
            create_batches(0, 0, 1)
        if until in STEP:
            if until == "batch":
                see("batch", digest(next(iter(create_batches(0, 0, 1)))))
            see("initial", digest(_weights(step)))
            with mock.patch.object(pipeline, "create_train_batches", drawn_batch):
                images, labels = create_batches(0, 0, 1)
            metrics = take_step(strategy, step, *split(strategy, images, labels))
            see("loss", float(metrics["loss"]))
            see("weights", digest(_weights(step)))
        return {}

    def predicting(strategy, function, create_batches, **_options):
        arrays = list(create_batches().as_numpy_iterator())
        if until == "evaluated":
            see("evaluated", digest(arrays))
        raise Enough

    def creating_predictor(strategy, function):
        return lambda create_batches: predicting(strategy, function, create_batches)

    def asking(source, **options):
        see("asked", digest_of_request(source, **options))

    def creating_batches(*args, **options):
        see("batch", digest(next(iter(create_batches(*args, **options)))))
        raise Enough

    replaced = (
        mock.patch.object(strategies, "split_cpu", lambda count: see("split_cpu", count)),
        mock.patch.object(
            tf.config.experimental, "enable_op_determinism", lambda: see("deterministic", True)
        ),
        mock.patch.object(strategies, "create_strategy", creating_strategy),
        mock.patch.object(
            tf.distribute.cluster_resolver,
            "TPUClusterResolver",
            lambda **options: see("tpu", options),
        ),
        mock.patch.object(loop, "train", training),
        mock.patch.object(corruptions, "worker_processes", lambda count: see("processes", count)),
    )
    evaluating = (
        mock.patch.object(predictions, "predict", predicting),
        mock.patch.object(predictions, "create_predictor", creating_predictor),
    )
    if until == "evaluated":
        replaced += (*evaluating, mock.patch.object(keras.models, "load_model", _load_once))
    if until == "batch" and "--mode=preview" in arguments:
        replaced += (mock.patch.object(pipeline, "create_train_batches", creating_batches),)
    if until == "asked":
        replaced += (mock.patch.object(pipeline, "create_train_batches", asking),)
    with contextlib.ExitStack() as stack:
        for patch in replaced:
            stack.enter_context(patch)
        stack.enter_context(contextlib.redirect_stdout(said))
        try:
            run_inside(*arguments)
        except Enough:
            pass
        except (ValueError, OSError) as error:
            seen["refused"] = str(error)
    seen["said"] = said.getvalue()
    return seen


def digest_of_request(source, *, policy, **options):
    """A hash of what a stage asks of the pipeline: images, labels and how to augment them."""
    images = getattr(source, "images", None)
    paths = getattr(source, "paths", ())
    draws = np.random.default_rng(0).random([20, policy.num_draws], np.float32)
    captions = [policy.describe(row, options["image_size"]) for row in draws]
    asked = (paths, policy.name, policy.compat, captions, sorted(options.items()))
    return digest([repr(asked), source.labels] + ([] if images is None else [images]))


def drawn_batch(_, *, batch_size, image_size, num_views, **_options):
    """A batch without a pipeline, for what comes after it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [batch_size, num_views, image_size, image_size, 3], np.uint8)
    labels = (
        np.arange(batch_size, dtype=np.int32) % 2
    )  # Several of a class, so that all losses differ.
    return images, labels


def take_step(strategy, step, images, labels):
    """One step on all replicas; eager where there is one, because tracing takes longer."""

    def run():
        per_replica = strategy.run(step, ({"image": images, "label": labels},))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    return run() if strategy.num_replicas_in_sync == 1 else tf.function(run, autograph=False)()


def _weights(step):
    """All weights that the step trains or uses, in their order."""
    models = [step.encoder, *step.models.values()]
    return [[variable.numpy() for variable in model.variables] for model in models]

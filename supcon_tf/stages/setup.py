"""What several stages build from the flags: strategy, sources, batches, optimizer."""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

from supcon_tf import command_line, distribute, optimizers, pipeline, policies, sources


def start(flags) -> tf.distribute.Strategy:
    """Makes the strategy and says what it runs on."""
    if flags.logical_cpus > 1:
        distribute.split_cpu(flags.logical_cpus)
    strategy = distribute.create_strategy(flags.strategy)
    replicas = strategy.num_replicas_in_sync
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    print(
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}; "
        f"{type(strategy).__name__}, {replicas} replica(s) on {kind}."
    )
    return strategy


def load_sources(flags) -> tuple[sources.Source, sources.Source]:
    """The training and the test split; looked at once, whatever stages use them."""
    return _load_sources(flags.dataset, flags.data_dir)


@functools.lru_cache(maxsize=1)
def _load_sources(dataset, data_dir):
    train = sources.load_source(dataset, "train", data_dir)
    test = sources.load_source(dataset, "test", data_dir)
    print(
        f"Dataset {dataset}: {train.num_examples:,} training and {test.num_examples:,} test "
        f"examples of {len(train.class_names)} classes ({_shorten(train.class_names)})."
    )
    return train, test


def check_batches(flags, strategy, train_source) -> None:
    """Raises ValueError if a batch cannot be filled or shared by the replicas."""
    replicas = strategy.num_replicas_in_sync
    pipeline.check_batch_size(
        flags.batch_size, num_examples=train_source.num_examples, num_replicas=replicas
    )
    if flags.eval_batch_size % replicas:
        raise ValueError(
            f"eval_batch_size={flags.eval_batch_size} cannot be shared evenly by {replicas} "
            "replicas."
        )


def create_policy(flags, augmentation_type: str) -> policies.Policy:
    """The augmentation of a stage."""
    return policies.create_policy(
        augmentation_type,
        magnitude=flags.augmentation_magnitude,
        compat=flags.augmentation_compat,
        num_layers=flags.randaugment_num_layers,
        jitter_variant="torchvision" if flags.use_pytorch_color_jitter else "tensorflow",
        warp_probability=flags.warp_probability,
    )


def create_train_batches(
    flags, strategy, source, *, image_size, policy, num_views, crop_area_range, start_step
):
    """The training batches of one stage, from a step on."""
    flip = flags.horizontal_flip
    return pipeline.create_train_batches(
        source,
        policy=policy,
        batch_size=flags.batch_size,
        image_size=image_size,
        seed=flags.seed,
        num_views=num_views,
        start_step=start_step,
        crop_area_range=command_line.numbers(crop_area_range),
        horizontal_flip=sources.may_flip(flags.dataset) if flip == "auto" else flip == "true",
        num_replicas=strategy.num_replicas_in_sync,
    )


def create_schedule(flags, stage: str, num_examples: int) -> optimizers.WarmUpThenDecay:
    """The learning rate of a stage; its total_steps is the length of the stage."""
    steps_per_epoch = num_examples / flags.batch_size
    return optimizers.WarmUpThenDecay(
        optimizers.scaled_learning_rate(
            flags[f"{stage}_base_learning_rate"].value, flags.batch_size
        ),
        decay=flags[f"{stage}_learning_rate_decay"].value,
        total_steps=int(flags[f"{stage}_epochs"].value * steps_per_epoch),
        warmup_steps=int(flags[f"{stage}_warmup_epochs"].value * steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        decay_rate=flags[f"{stage}_decay_rate"].value,
        epochs_per_decay=flags[f"{stage}_epochs_per_decay"].value,
        boundary_epochs=command_line.numbers(flags[f"{stage}_decay_boundary_epochs"].value),
    )


def create_optimizer(flags, stage: str, schedule) -> tuple[keras.optimizers.Optimizer, float]:
    """The optimizer of a stage and the weight decay left to the step (LARS decays itself)."""
    name, weight_decay = flags[f"{stage}_optimizer"].value, flags[f"{stage}_weight_decay"].value
    optimizer = optimizers.create_optimizer(
        name, schedule, weight_decay=weight_decay, decay_biases=flags.use_bias_weight_decay
    )
    return optimizer, 0.0 if name == "lars" else weight_decay


def explain_failure(flags, source):
    """A function (first step, last step) -> which files of those steps cannot be decoded."""

    def explain(first_step, last_step):
        if not isinstance(source, sources.FileSource):
            return None
        broken = sources.find_undecodable(
            pipeline.paths_of_steps(
                source,
                batch_size=flags.batch_size,
                seed=flags.seed,
                first_step=first_step,
                last_step=last_step,
            )
        )
        if not broken:
            return None
        return "these files cannot be decoded; remove or replace them:\n  " + "\n  ".join(broken)

    return explain


def _shorten(names):
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")

"""Optimizers, learning rate schedules and weight decay as in the reference implementation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from supcon_tf.training.momentum_update import apply_momentum

OPTIMIZERS = ("momentum", "nesterov", "lars", "rmsprop", "adam", "adamw", "lamb")
SCHEDULES = ("cosine", "cosine_per_epoch", "exponential", "piecewise", "none")
MOMENTUM = 0.9
LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
# Patterns of variable paths that LARS excludes by default: gamma and beta of batch norm.
NEVER_DECAYED = ("batch_normalization", "/(gamma|beta)$")
# Layers whose variables never decay, whatever they are called.
NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def scaled_learning_rate(base_learning_rate: float, batch_size: int) -> float:
    """Returns base_learning_rate * batch_size / 256, where the batch counts examples, not views."""
    return base_learning_rate * batch_size / 256


def create_optimizer(
    name: str,
    learning_rate: LearningRate,
    *,
    weight_decay: float = 0.0,
    undecayed: Sequence[keras.Variable] = (),
    rmsprop_epsilon: float = 0.001,
) -> keras.optimizers.Optimizer:
    """Creates an optimizer that applies the weight decay; its momentum, if any, is 0.9.

    momentum and nesterov multiply the whole buffer by the current learning rate, as TensorFlow 1
    and PyTorch do (`keras.optimizers.SGD` does not).

    In momentum, nesterov, rmsprop and adam, the weight decay is the gradient of an additional loss
    weight_decay / 2 |w|^2, as in the reference implementation, so it enters their moments. LARS
    adds it to the gradient before the trust ratio. adamw and lamb, which the reference does not
    have, subtract learning_rate * weight_decay * w separately (in lamb this follows Keras; You et
    al. 2020 include it in the trust ratio).

    Args:
        name: "momentum", "nesterov", "lars", "rmsprop", "adam", "adamw" or "lamb".
        learning_rate: A number or a schedule over steps.
        weight_decay: Strength of the weight decay.
        undecayed: Variables without decay, and in LARS without adaptation; see
            `undecayed_variables`.
        rmsprop_epsilon: Added inside RMSProp's square root.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "lars":
        optimizer = LARS(learning_rate, weight_decay=weight_decay)
    elif name == "rmsprop":
        optimizer = RMSProp(learning_rate, epsilon=rmsprop_epsilon, l2=weight_decay)
    elif name == "adam":
        optimizer = Adam(learning_rate, l2=weight_decay)
    elif name in ("momentum", "nesterov"):
        optimizer = Momentum(learning_rate, nesterov=name == "nesterov", l2=weight_decay)
    elif name == "adamw":
        optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)
    elif name == "lamb":
        optimizer = keras.optimizers.Lamb(learning_rate, weight_decay=weight_decay)
    else:
        raise ValueError(f"Unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}.")
    optimizer.exclude_from_weight_decay(var_list=list(undecayed))
    return optimizer


def undecayed_variables(model: keras.Layer, *, decay_biases: bool = True) -> list[keras.Variable]:
    """Returns the trainable variables of a model that have no weight decay.

    These are the variables of normalization layers, found by the kind of layer and not by its
    name, and with decay_biases=False all biases.
    """
    normalizing = {
        id(variable)
        for layer in model._flatten_layers()
        if isinstance(layer, NORMALIZATIONS)
        for variable in layer.trainable_variables
    }
    return [
        variable
        for variable in model.trainable_variables
        if id(variable) in normalizing or (not decay_biases and "bias" in variable.name)
    ]


def is_decayed(path: str, exclude: tuple[str, ...]) -> bool:
    """Returns whether no pattern, a regular expression, in `exclude` matches a variable's path."""
    return not any(re.search(pattern, path) for pattern in exclude)


class _WithL2:
    """Adds the gradient of l2 / 2 |w|^2 to that of every variable that is not excluded.

    Because this happens inside the optimizer, it is added once to the sum over replicas, and to
    gradients that a `LossScaleOptimizer` has already unscaled.
    """

    def __init__(self, learning_rate=0.001, *, l2=0.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2

    def add_decay(self, gradient, variable):
        if self.l2 and self._use_weight_decay(variable):
            gradient = tf.cast(gradient, variable.dtype) + self.l2 * tf.convert_to_tensor(variable)
        return gradient

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self.add_decay(gradient, variable), variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="supcon_tf")
class Momentum(_WithL2, keras.optimizers.Optimizer):
    """SGD with momentum or Nesterov momentum as in TensorFlow 1 and PyTorch, and L2 weight decay.

    For each variable, with g the gradient plus l2 * w:

        v <- momentum v + g;   w <- w - learning_rate v
        Nesterov:              w <- w - learning_rate (g + momentum v)

    The current learning rate multiplies the whole buffer v. `keras.optimizers.SGD` keeps each
    gradient in its buffer multiplied by the learning rate of its own step, which gives other
    weights as soon as the learning rate changes.
    https://github.com/tensorflow/tensorflow/blob/v1.15.5/tensorflow/python/training/momentum.py
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html

    Args:
        learning_rate: A number or a schedule over steps.
        momentum: Factor of the buffer, at least 0 and below 1.
        nesterov: Whether to look one step ahead.
        l2: Strength of the weight decay.

    Raises:
        ValueError: If `momentum` is out of range.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        *,
        momentum: float = MOMENTUM,
        nesterov: bool = False,
        name: str = "momentum",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be at least 0 and below 1; usual is 0.9.")
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        apply_momentum(
            variable,
            self.velocities[self._get_variable_index(variable)],
            self.add_decay(gradient, variable),
            learning_rate=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable(package="supcon_tf")
class Adam(_WithL2, keras.optimizers.Adam):
    """Keras' Adam with the epsilon of TensorFlow 1, and weight decay as part of the loss.

    The weights are bit for bit those of `keras.optimizers.Adam`, which computes the corrected
    learning rate again for each variable. Here a step computes it once per device.
    """

    def __init__(
        self, learning_rate: LearningRate = 0.001, *, epsilon: float = 1e-8, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, epsilon=epsilon, **kwargs)
        self._rates = _RatesOfOneStep()

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Any = None) -> None:
        self._rates.values.clear()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._rates.values.clear()

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        average, square = self._momentums[index], self._velocities[index]
        gradient = tf.convert_to_tensor(tf.cast(gradient, variable.dtype))
        gradient = self.add_decay(gradient, variable)
        rates, key = self._rates.values, (variable.dtype, gradient.device)
        if key not in rates:
            rates[key] = self._corrected_rate(learning_rate, variable.dtype)
        self.assign_add(average, (gradient - average) * (1 - self.beta_1))
        self.assign_add(square, (tf.square(gradient) - square) * (1 - self.beta_2))
        self.assign_sub(variable, average * rates[key] / (tf.sqrt(square) + self.epsilon))

    def _corrected_rate(self, learning_rate, dtype):
        """Returns rate sqrt(1 - beta_2^t) / (1 - beta_1^t) in step t, counted from 1."""
        step = tf.cast(self.iterations + 1, dtype)
        first, second = (tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2))
        return tf.cast(learning_rate, dtype) * tf.sqrt(1 - second) / (1 - first)


class _RatesOfOneStep:
    """Not a dictionary, which checkpoints would save."""

    def __init__(self):
        self.values = {}


@keras.saving.register_keras_serializable(package="supcon_tf")
class RMSProp(_WithL2, keras.optimizers.RMSprop):
    """RMSProp as in TensorFlow 1, with weight decay as part of the loss.

        s <- rho s + (1 - rho) g^2, where s starts at 1 (in Keras at 0)
        v <- momentum v + learning_rate g / sqrt(s + epsilon);   w <- w - v

    https://github.com/tensorflow/tensorflow/blob/v1.15.5/tensorflow/python/training/rmsprop.py
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        *,
        rho: float = 0.9,
        momentum: float = MOMENTUM,
        epsilon: float = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, rho=rho, momentum=momentum, epsilon=epsilon, **kwargs)

    def add_optimizer_variables(
        self,
        trainable_variables: list[keras.Variable],
        name: str,
        initializer: str | keras.Initializer = "zeros",
    ) -> list[keras.Variable]:
        if name == "velocity":  # Keras' name for the mean square.
            initializer = "ones"
        return super().add_optimizer_variables(trainable_variables, name, initializer)


@keras.saving.register_keras_serializable(package="supcon_tf")
class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling with classic momentum (You et al. 2017).

    For each variable, with g the gradient plus weight_decay * w:

        trust = eta |w| / |g|   (1 if either norm is 0)
        v <- momentum v + learning_rate trust g;   w <- w - v

    Variables whose path matches `exclude`, or that `exclude_from_weight_decay` names, have neither
    weight decay nor adaptation (trust 1).
    https://arxiv.org/abs/1708.03888
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        *,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        exclude: tuple[str, ...] = NEVER_DECAYED,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.lars_weight_decay = weight_decay
        self.eta = eta
        self.exclude = tuple(exclude)

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.velocities = [
            self.add_variable_from_reference(variable, name="velocity") for variable in variables
        ]
        # Resolved here, because update_step receives variables without their path.
        self._is_adapted = [
            is_decayed(variable.path, self.exclude) and self._use_weight_decay(variable)
            for variable in variables
        ]

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        if self._is_adapted[index]:
            weights = tf.convert_to_tensor(variable)
            gradient = gradient + self.lars_weight_decay * weights
            weight_norm, gradient_norm = tf.norm(weights), tf.norm(gradient)
            both = (weight_norm > 0) & (gradient_norm > 0)
            ratio = self.eta * weight_norm / tf.where(both, gradient_norm, 1)
            learning_rate = learning_rate * tf.where(both, ratio, 1)
        update, velocity = learning_rate * gradient, self.velocities[index]
        apply_momentum(variable, velocity, update, learning_rate=1, momentum=self.momentum)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "weight_decay": self.lars_weight_decay,
            "eta": self.eta,
            "exclude": list(self.exclude),
        }


@keras.saving.register_keras_serializable(package="supcon_tf")
class WarmUpThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a decay over the remaining steps, then 0.

    Args:
        peak_learning_rate: Learning rate at the end of the warm-up.
        decay: "cosine" (to 0), "exponential" (a staircase), "piecewise" (constant pieces), "none",
            or "cosine_per_epoch" as in https://github.com/HobbitLong/SupContrast (util.py): one
            rate per epoch, counted from the start of training, so that the warm-up does not shift
            it; it ends at peak_learning_rate * decay_rate^3.
        total_steps: Length of the stage; the rate is 0 beyond it. A stage of length 0 keeps the
            peak and has no warm-up.
        warmup_steps: Length of the warm-up, at most total_steps.
        warmup_start: Learning rate at the start of the warm-up, as a fraction of the peak.
        steps_per_epoch: Steps per epoch, for the decays that count epochs.
        decay_rate: Factor of each drop.
        epochs_per_decay: Epochs between two drops of "exponential".
        boundary_epochs: Epochs after the warm-up at which "piecewise" drops.
    """

    def __init__(
        self,
        peak_learning_rate: float,
        *,
        decay: str = "cosine",
        total_steps: int,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
        steps_per_epoch: float = 1.0,
        decay_rate: float = 0.1,
        epochs_per_decay: float = 2.4,
        boundary_epochs: tuple[float, ...] = (30, 60, 80, 90),
    ):
        if decay not in SCHEDULES:
            raise ValueError(f"Unknown decay {decay!r}: choose one of {', '.join(SCHEDULES)}.")
        if warmup_steps > total_steps:
            raise ValueError(
                f"The warm-up of {warmup_steps} steps is longer than the stage, which has "
                f"{total_steps} steps: shorten the warm-up or train for longer."
            )
        self.peak_learning_rate = peak_learning_rate
        self.decay = decay
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start
        self.steps_per_epoch = steps_per_epoch
        self.decay_rate = decay_rate
        self.epochs_per_decay = epochs_per_decay
        self.boundary_epochs = tuple(boundary_epochs)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        if not self.total_steps:
            return self.peak_learning_rate * tf.ones_like(step)
        after_warmup = step - float(self.warmup_steps)
        rate = self.peak_learning_rate * self._decay_factor(after_warmup)
        if self.warmup_steps:
            start, end = self.warmup_start, self._warmup_end()
            share = start + (end - start) * step / float(self.warmup_steps)
            warming = self.peak_learning_rate * share
            rate = tf.where(after_warmup < 0, warming, rate)
        return tf.where(step > float(self.total_steps), 0.0, rate)

    def _warmup_end(self):
        if self.decay != "cosine_per_epoch":
            return 1.0
        return self._cosine_at_epoch(float(round(self.warmup_steps / self.steps_per_epoch)))

    def _cosine_at_epoch(self, epoch):
        lowest, num_epochs = self.decay_rate**3, self.total_steps / self.steps_per_epoch
        share = tf.clip_by_value(epoch / num_epochs, 0.0, 1.0)
        return lowest + (1.0 - lowest) * 0.5 * (1.0 + tf.cos(math.pi * share))

    def _decay_factor(self, step):
        """Returns the factor of the peak, `step` steps after the warm-up."""
        if self.decay == "cosine_per_epoch":
            step += float(self.warmup_steps)
            return self._cosine_at_epoch(tf.floor(step / self.steps_per_epoch) + 1.0)
        decay_steps = float(self.total_steps - self.warmup_steps)
        if self.decay == "cosine" and decay_steps:
            share = tf.clip_by_value(step / decay_steps, 0.0, 1.0)
            return 0.5 * (1.0 + tf.cos(math.pi * share))
        if self.decay == "exponential":
            # In float32 like the reference, which matters exactly at a boundary.
            steps = tf.constant(self.epochs_per_decay, tf.float32) * self.steps_per_epoch
            stair = tf.floor(step / steps)
            return tf.pow(tf.cast(self.decay_rate, tf.float32), stair)
        if self.decay == "piecewise":
            ends = [epoch * self.steps_per_epoch for epoch in self.boundary_epochs]
            passed = sum(tf.cast(step > end, tf.float32) for end in ends)
            return tf.pow(tf.cast(self.decay_rate, tf.float32), passed)
        return tf.ones_like(step)

    def get_config(self) -> dict:
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "decay": self.decay,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_start": self.warmup_start,
            "steps_per_epoch": self.steps_per_epoch,
            "decay_rate": self.decay_rate,
            "epochs_per_decay": self.epochs_per_decay,
            "boundary_epochs": list(self.boundary_epochs),
        }

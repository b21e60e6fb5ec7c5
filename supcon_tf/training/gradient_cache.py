"""Gradient caching: the loss over a whole batch whose encoder activations do not fit in memory.

The contrastive loss needs only the embeddings of the whole batch. So the encoder processes the
batch in pieces without keeping its activations, the loss gives its gradient with respect to the
embeddings of the whole batch, and a second pass over the same pieces propagates that gradient to
the weights (Gao et al. 2021, https://arxiv.org/abs/2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from supcon_tf.models.contrastive import ContrastiveModel


def cached_gradients(
    model: ContrastiveModel,
    images: tf.Tensor,
    objective: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, Any]],
    *,
    microbatch_size: int,
    other_variables: Sequence[keras.Variable] = (),
) -> tuple[Any, list[tf.Tensor], tf.Tensor]:
    """Computes the gradients of a batch with the activations of one piece in memory at a time.

    Without batch norm, the result equals that of the whole batch. With it, each piece is
    normalized by its own statistics, and the moving averages are updated once per image, in the
    second pass. There is no communication between replicas inside a loop, so batch norm must not
    be synchronized; the loss gathers between the two passes.

    Args:
        model: A built model whose batch norm is not synchronized.
        images: [B, V, S, S, 3], with static B.
        objective: (embeddings float32 [B, V, F], unit vectors [B, V, D]) -> this replica's part
            of the loss, and metrics to return.
        microbatch_size: Examples per piece; divides B.
        other_variables: What the objective itself trains, such as a classifier.

    Returns:
        The metrics; the gradients of model.trainable_variables and other_variables; and the
        embeddings [B, V, F] of the first pass.

    Raises:
        ValueError: If microbatch_size does not divide B.
    """
    batch = images.shape[0]
    if batch is None or batch % microbatch_size:
        raise ValueError(
            f"microbatch_size={microbatch_size} must divide the batch of a replica, {batch}."
        )
    pieces = _Pieces(model, images, microbatch_size)
    embeddings, projections = pieces.embed()
    metrics, output_gradients, other_gradients = _differentiate(
        objective, embeddings, projections, other_variables
    )
    gradients = pieces.propagate(output_gradients)
    return metrics, [*gradients, *other_gradients], embeddings


def _differentiate(objective, embeddings, projections, other_variables):
    """Returns the metrics, and the gradients with respect to the outputs and other variables."""
    with tf.GradientTape() as tape:
        tape.watch([embeddings, projections])
        loss, metrics = objective(embeddings, projections)
    output_gradients, other_gradients = tape.gradient(
        loss,
        [[embeddings, projections], [variable.value for variable in other_variables]],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return metrics, output_gradients, other_gradients


class _Pieces:
    """A batch in pieces: both passes of the model over it.

    Both passes start from the state of the model before the step, so that dropout draws the same
    masks in both. Only the second one updates it.
    """

    def __init__(self, model, images, microbatch_size):
        self._model, self._images, self._size = model, images, microbatch_size
        self._count = images.shape[0] // microbatch_size
        self._trainable = [tf.convert_to_tensor(v) for v in model.trainable_variables]
        self._state = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]

    def embed(self):
        """First pass: returns the embeddings [B, V, F] and the unit vectors [B, V, D]."""
        projection_shape = self._model.compute_output_shape(self._images.shape)  # [B, V, D]
        embedding_shape = (*projection_shape[:2], self._model.encoder.output_shape[-1])
        shapes = (embedding_shape, projection_shape)
        arrays = [
            tf.TensorArray(tf.float32, self._count, element_shape=[self._size, *shape[1:]])
            for shape in shapes
        ]

        def step(index, embeddings, projections, state):
            new_embeddings, new_projections, state = self._forward(index, state)
            return (
                index + 1,
                embeddings.write(index, new_embeddings),
                projections.write(index, new_projections),
                state,
            )

        _, *arrays, _ = _loop(self._count, step, [*arrays, self._state])
        return [
            tf.reshape(array.stack(), shape) for array, shape in zip(arrays, shapes, strict=True)
        ]

    def propagate(self, output_gradients):
        """Second pass: returns the gradients of the weights, and updates the model's state.

        Args:
            output_gradients: The gradients with respect to what `embed` returned.
        """

        def step(index, gradients, state):
            with tf.GradientTape() as tape:
                tape.watch(self._trainable)
                *outputs, state = self._forward(index, state)
            found = tape.gradient(
                outputs,
                self._trainable,
                output_gradients=[self._piece(gradient, index) for gradient in output_gradients],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return index + 1, [a + b for a, b in zip(gradients, found, strict=True)], state

        zeros = [tf.zeros_like(v) for v in self._trainable]
        _, gradients, state = _loop(self._count, step, [zeros, self._state])
        for variable, value in zip(self._model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        return gradients

    def _forward(self, index, state):
        (embeddings, projections), state = self._model.stateless_call(
            self._trainable, state, self._piece(self._images, index),
            training=True, return_embeddings=True,
        )  # fmt: skip
        return embeddings, projections, state

    def _piece(self, tensor, index):
        # Not a slice that starts at index * size, whose length XLA would not know at compile time.
        return tf.reshape(tensor, [self._count, self._size, *tensor.shape[1:]])[index]


def _loop(num_pieces, body, variables):
    """Processes one piece at a time: parallel iterations would keep activations of several."""
    return tf.while_loop(
        lambda index, *_: index < num_pieces,
        body,
        [tf.constant(0), *variables],
        parallel_iterations=1,
    )

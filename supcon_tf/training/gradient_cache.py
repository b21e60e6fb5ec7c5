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
    num_pieces = batch // microbatch_size
    trainable = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    state = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]

    def piece(tensor, index):
        # Not a slice that starts at index * size, whose length XLA would not know at compile time.
        return tf.reshape(tensor, [num_pieces, microbatch_size, *tensor.shape[1:]])[index]

    def forward(trainable, state, index):
        (embeddings, projections), state = model.stateless_call(
            trainable, state, piece(images, index), training=True, return_embeddings=True
        )
        return embeddings, projections, state

    def first_pass(index, embeddings, projections, state):
        # The state is passed along, so that dropout draws the same masks in both passes.
        new_embeddings, new_projections, state = forward(trainable, state, index)
        return (
            index + 1,
            embeddings.write(index, new_embeddings),
            projections.write(index, new_projections),
            state,
        )

    projection_shape = model.compute_output_shape(images.shape)  # [B, V, D]
    embedding_shape = (*projection_shape[:2], model.encoder.output_shape[-1])
    arrays = [
        tf.TensorArray(tf.float32, num_pieces, element_shape=[microbatch_size, *shape[1:]])
        for shape in (embedding_shape, projection_shape)
    ]
    _, *arrays, _ = _loop(num_pieces, first_pass, [*arrays, state])
    embeddings = tf.reshape(arrays[0].stack(), embedding_shape)
    projections = tf.reshape(arrays[1].stack(), projection_shape)

    with tf.GradientTape() as tape:
        tape.watch([embeddings, projections])
        loss, metrics = objective(embeddings, projections)
    cached, other_gradients = tape.gradient(
        loss,
        [[embeddings, projections], [variable.value for variable in other_variables]],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )

    def second_pass(index, gradients, state):
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            *outputs, state = forward(trainable, state, index)
        found = tape.gradient(
            outputs,
            trainable,
            output_gradients=[piece(gradient, index) for gradient in cached],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return index + 1, [a + b for a, b in zip(gradients, found, strict=True)], state

    zeros = [tf.zeros_like(v) for v in trainable]
    _, gradients, state = _loop(num_pieces, second_pass, [zeros, state])
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return metrics, [*gradients, *other_gradients], embeddings


def _loop(num_pieces, body, variables):
    """Processes one piece at a time: parallel iterations would keep activations of several."""
    return tf.while_loop(
        lambda index, *_: index < num_pieces,
        body,
        [tf.constant(0), *variables],
        parallel_iterations=1,
    )

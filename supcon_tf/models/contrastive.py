"""Models built around an encoder: projection head, contrastive model, linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from supcon_tf.models import (
    applications,
    batch_norm,
    convolution,
    pixel_values,
    resnet,
    saved_encoder,
)
from supcon_tf.storage import encoder_files


def create_encoder(
    architecture: str = "tiny", *, weights: str | None = None, **options: Any
) -> keras.Model:
    """Creates an encoder by name: float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    Args:
        architecture: One of `resnet.ARCHITECTURES`; a network of Keras such as
            "keras.applications.EfficientNetV2B0"; or a `.keras` file or the model directory of a
            run, as in "runs/mine", whose encoder is loaded with its weights.
        weights: The weights to start from: "imagenet" for a network of Keras; or a `.weights.h5`
            or `.keras` file or the model directory of a run. None: random weights, or those of
            the file that `architecture` names.
        **options: Keyword arguments of `resnet.create_resnet`, of
            `applications.create_application`, or for a file of `saved_encoder.load_encoder`.

    The encoder scales the images itself and, as a plain Keras model, does not check their range:
    images in 0..1 would be treated as almost black.

    Raises:
        ValueError: The encoder is unknown, a file cannot be loaded, or the weights do not fit.
    """
    is_imagenet = weights == encoder_files.IMAGENET
    if architecture.startswith(applications.PREFIX):
        keras_weights = weights if is_imagenet else None
        encoder = applications.create_application(architecture, weights=keras_weights, **options)
    elif is_imagenet:
        raise ValueError(
            f"There are no ImageNet weights for the encoder {architecture!r}: choose a network of "
            'Keras, such as "keras.applications.EfficientNetV2B0", or name a file of weights.'
        )
    elif encoder_files.is_encoder_path(architecture):
        encoder = saved_encoder.load_encoder(architecture, **options)
        check_encoder(encoder)
    else:
        encoder = resnet.create_resnet(architecture=architecture, **options)
    if weights is not None and not is_imagenet:
        saved_encoder.load_weights_into(encoder, weights)
    return encoder


def check_encoder(encoder: keras.Model) -> None:
    """Raises ValueError unless the model is float32 [B, S, S, 3] -> float32 [B, F].

    Whether it expects values from 0 to 255 cannot be checked.
    """
    inputs, outputs = (getattr(encoder, name, None) or [] for name in ("inputs", "outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"The encoder {encoder.name!r} has {len(inputs)} inputs and {len(outputs)} outputs: "
            "expected a functional or Sequential Keras model that starts with "
            'keras.Input([S, S, 3], dtype="float32") and gives features [B, F].'
        )
    (images,), (features,) = inputs, outputs
    if len(images.shape) != 4 or images.shape[-1] != 3 or images.dtype != "float32":
        raise ValueError(
            f"The encoder {encoder.name!r} takes {images.dtype} {tuple(images.shape)}: expected "
            "images float32 [B, S, S, 3] with values from 0 to 255. (Other types would round the "
            "values of augmented images.)"
        )
    if len(features.shape) != 2 or features.shape[-1] is None or features.dtype != "float32":
        raise ValueError(
            f"The encoder {encoder.name!r} gives {features.dtype} {tuple(features.shape)}: "
            "expected features float32 [B, F]; end it with GlobalAveragePooling2D"
            '(dtype="float32") or the like.'
        )


def computes_in_float16(model: layers.Layer) -> bool:
    """Whether any layer computes in float16, where small gradients vanish without loss scaling."""
    return any(layer.compute_dtype == "float16" for layer in model._flatten_layers())


@keras.saving.register_keras_serializable(package="supcon_tf")
class ProjectionHead(layers.Layer):
    """A multi-layer perceptron with an L2-normalized output, as in the reference implementation.

    Each layer except the last is Dense -> (batch norm) -> ReLU. The last is linear without a bias.
    With batch norm no layer has a bias. Kernels are initialized from a normal distribution with a
    standard deviation of 0.01.

    Args:
        layer_sizes: Output size of each layer. The last is D, the size of the projections.
        use_batch_norm: Use batch norm after every layer except the last.
        use_batch_norm_beta: Learn beta in this batch norm.
        use_global_batch_norm: Compute its statistics over all replicas, not per replica.

    Input float [B, F], output float32 [B, D] of unit norm.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int] = (128,),
        *,
        use_batch_norm: bool = False,
        use_batch_norm_beta: bool = True,
        use_global_batch_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layer_sizes = tuple(int(size) for size in layer_sizes)
        if not self.layer_sizes or min(self.layer_sizes) < 1:
            raise ValueError(
                f"projection head layers {self.layer_sizes}: expected one or more sizes of at "
                "least 1, such as 2048,128."
            )
        self.use_batch_norm = use_batch_norm
        self.use_batch_norm_beta = use_batch_norm_beta
        self.use_global_batch_norm = use_global_batch_norm
        last = len(self.layer_sizes) - 1
        steps = []
        for index, size in enumerate(self.layer_sizes):
            steps.append(
                layers.Dense(
                    size,
                    use_bias=index < last and not use_batch_norm,
                    kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                    dtype=self.dtype_policy,
                    name=f"dense{index}",
                )
            )
            if index < last:
                if use_batch_norm:
                    steps.append(
                        layers.BatchNormalization(
                            momentum=resnet.BATCH_NORM_MOMENTUM,
                            epsilon=resnet.BATCH_NORM_EPSILON,
                            center=use_batch_norm_beta,
                            synchronized=use_global_batch_norm,
                            dtype=self.dtype_policy,
                            name=f"batch_normalization{index}",
                        )
                    )
                steps.append(layers.ReLU(dtype=self.dtype_policy))
        steps.append(layers.UnitNormalization(dtype="float32"))
        self.steps = tuple(steps)  # tf.train.Checkpoint does not look into a list of Keras.

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 2:
            raise ValueError(f"ProjectionHead takes [batch, features], not {tuple(input_shape)}.")
        for step in self.steps:
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)

    def call(self, embeddings: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = embeddings
        for step in self.steps:
            is_batch_norm = isinstance(step, layers.BatchNormalization)
            x = step(x, training=training) if is_batch_norm else step(x)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.layer_sizes[-1])

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "layer_sizes": list(self.layer_sizes),
            "use_batch_norm": self.use_batch_norm,
            "use_batch_norm_beta": self.use_batch_norm_beta,
            "use_global_batch_norm": self.use_global_batch_norm,
        }


@keras.saving.register_keras_serializable(package="supcon_tf")
class ContrastiveModel(keras.Model):
    """Encoder, L2 norm, projection head, L2 norm, over all views of a batch at once.

    Args:
        encoder: Any Keras model float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        projection_head: A layer [B, F] -> [B, D]. Defaults to one linear layer with D = 128.
        normalize_embedding: L2-normalize the encoder's output before the head.
        use_fused_batch_norm: Train the encoder's batch norm layers with TensorFlow's fused
            kernel, which is faster and needs less memory than Keras' own operations, and if their
            statistics are those of all replicas, with one exchange in each direction; see
            `supcon_tf.models.batch_norm`. False leaves the layers as they are.

    Padded convolutions of the encoder keep less memory in training, with the same results up to
    rounding; see `supcon_tf.models.convolution`.

    Input [B, V, S, S, 3] (uint8 or float, 0..255) or [B, S, S, 3] for one view; output float32
    [B, V, D] of unit norm, ready for `SupConLoss`. Images in 0..1 give a warning. Raises
    ValueError for another encoder.
    """

    def __init__(
        self,
        encoder: keras.Model,
        projection_head: layers.Layer | None = None,
        *,
        normalize_embedding: bool = True,
        use_fused_batch_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        # Not cast to the precision of the policy: 0..255 would lose its fractions.
        super().__init__(autocast=False, **kwargs)
        check_encoder(encoder)
        self.encoder = encoder
        self.projection_head = (
            ProjectionHead(name="projection_head") if projection_head is None else projection_head
        )
        self.normalize_embedding = normalize_embedding
        self.use_fused_batch_norm = use_fused_batch_norm
        if use_fused_batch_norm:
            batch_norm.use_fused_batch_norm(encoder)
        convolution.use_lean_gradients(encoder)
        self.embedding_norm = layers.UnitNormalization(dtype="float32")
        if not self.projection_head.built:  # A loaded head comes built.
            self.projection_head.build((None, encoder.output_shape[-1]))
        self.built = True  # Every variable is there: nothing waits for the first batch.

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        return super().fit(pixel_values.check_input(x), *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(pixel_values.check_input(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        return super().predict(pixel_values.check_input(x), *args, **kwargs)

    def call(
        self,
        images: tf.Tensor,
        training: bool | None = None,
        return_embeddings: bool = False,
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        embeddings = self.embed(images, training=training)
        projections = self.project(embeddings, training=training)
        return (embeddings, projections) if return_embeddings else projections

    def embed(self, images: tf.Tensor, training: bool | None = False) -> tf.Tensor:
        """The encoder's output, not normalized. [B, V, S, S, 3] -> float32 [B, V, F]."""
        if tf.executing_eagerly():
            pixel_values.warn_if_scaled(images)
        images = tf.cast(images, tf.float32)
        if images.shape.rank == 4:
            images = images[:, None]
        _, num_views, side, _, channels = images.shape
        batch = tf.shape(images)[0]
        flat = tf.reshape(images, [batch * num_views, side, side, channels])  # [B V, S, S, 3]
        features = self.encoder(flat, training=training)
        return tf.reshape(features, [batch, num_views, features.shape[-1]])

    def project(self, embeddings: tf.Tensor, training: bool | None = False) -> tf.Tensor:
        """[B, V, F] -> unit vectors float32 [B, V, D]."""
        batch, num_views = tf.shape(embeddings)[0], embeddings.shape[1]
        flat = tf.reshape(embeddings, [batch * num_views, embeddings.shape[-1]])
        if self.normalize_embedding:
            flat = self.embedding_norm(flat)
        projections = self.projection_head(flat, training=training)
        return tf.reshape(projections, [batch, num_views, projections.shape[-1]])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        num_views = input_shape[1] if len(input_shape) == 5 else 1
        head_shape = self.projection_head.compute_output_shape(
            (None, self.encoder.output_shape[-1])
        )
        return (input_shape[0], num_views, head_shape[-1])

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "projection_head": keras.saving.serialize_keras_object(self.projection_head),
            "normalize_embedding": self.normalize_embedding,
            "use_fused_batch_norm": self.use_fused_batch_norm,
        }

    @classmethod
    def from_config(cls, config: dict) -> ContrastiveModel:
        config = dict(config)
        for part in ("encoder", "projection_head"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def create_linear_head(
    num_features: int,
    num_classes: int,
    *,
    normalize_embedding: bool = True,
    zero_initialize: bool = False,
    name: str = "linear_head",
) -> keras.Model:
    """One linear layer on embeddings: float32 [B, F] -> logits float32 [B, C].

    Args:
        num_features: F, the size of the embeddings.
        num_classes: C.
        normalize_embedding: L2-normalize the embedding first.
        zero_initialize: Initialize the kernel with zeros instead of Glorot uniform.
    """
    embeddings = keras.Input([num_features], dtype="float32")
    x = embeddings
    if normalize_embedding:
        x = layers.UnitNormalization(dtype="float32")(x)
    logits = layers.Dense(
        num_classes,
        kernel_initializer="zeros" if zero_initialize else "glorot_uniform",
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(embeddings, logits, name=name)


def create_classifier(encoder: keras.Model, linear_head: keras.Model) -> keras.Model:
    """Encoder and linear head as one model: images 0..255 [B, S, S, 3] -> logits [B, C].

    The encoder is frozen, and its batch norm always runs in inference mode.
    """
    images = keras.Input(encoder.input_shape[1:], dtype="float32", name="image")
    encoder.trainable = False
    return keras.Model(images, linear_head(encoder(images, training=False)), name="classifier")


def split_classifier(classifier: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Returns the encoder and the linear head of a model of `create_classifier`.

    Raises:
        ValueError: The model has another structure.
    """
    parts = [layer for layer in classifier.layers if isinstance(layer, keras.Model)]
    if len(parts) != 2:
        raise ValueError(
            f"The model {classifier.name!r} has the layers "
            f"{[layer.name for layer in classifier.layers]}: a classifier consists of an encoder "
            "and a linear head, as create_classifier puts them together."
        )
    return tuple(parts)


def create_projector(model: ContrastiveModel) -> keras.Model:
    """Creates a model of the part after the encoder: [B, F] -> unit vectors [B, D]."""
    embeddings = keras.Input([model.encoder.output_shape[-1]], dtype="float32")
    x = model.embedding_norm(embeddings) if model.normalize_embedding else embeddings
    return keras.Model(embeddings, model.projection_head(x), name="projection_head")

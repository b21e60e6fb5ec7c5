import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from supcon_tf.losses import supcon
from supcon_tf.models import contrastive
from supcon_tf.training import gradient_cache

LOSS = supcon.SupConLoss(reduction=None)


def create_model(encoder=None):
    """Without batch norm, unless the encoder has it."""
    keras.utils.set_random_seed(0)
    if encoder is None:
        images = keras.Input([8, 8, 3])
        x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 127.5, -1.0)(images))
        encoder = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    return contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead((16, 8)))


def draw_batch(num_examples=12):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 2, 8, 8, 3)).astype(np.uint8)
    return tf.constant(images), tf.constant(np.arange(num_examples) % 3)


def objective(labels):
    """The mean over the batch of 12 from the projections alone, handed back as the metrics too."""

    def loss_of(_, projections):
        loss = tf.reduce_sum(LOSS.call(labels, projections)) / 12
        return loss, loss

    return loss_of


def whole_gradients(model, images, labels):
    with tf.GradientTape() as tape:
        losses = LOSS.call(labels, model(images, training=True))
        loss = tf.reduce_sum(losses) / len(labels)
    return loss, tape.gradient(loss, model.trainable_variables)


def assert_same(found, expected):
    scale = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(scale, 1))


@pytest.mark.parametrize("size", [1, 3, 12])
def test_pieces_give_the_gradient_of_the_whole_batch(size):
    model, (images, labels) = create_model(), draw_batch()

    @tf.function(autograph=False)
    def cached(images):
        return gradient_cache.cached_gradients(
            model, images, objective(labels), microbatch_size=size
        )

    loss, gradients, embeddings = cached(images)
    expected_loss, expected = whole_gradients(model, images, labels)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_same(gradients, expected)
    np.testing.assert_allclose(embeddings, model.embed(images), rtol=1e-5, atol=1e-6)


def test_pieces_train_a_classifier_on_the_embeddings_too():
    """The objective of joint training uses both outputs and has its own variables."""
    model, (images, labels) = create_model(), draw_batch()
    head = contrastive.create_linear_head(8, 3)

    def joint(embeddings, projections):
        logits = head(embeddings[:, 0])
        values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        loss = tf.reduce_mean(LOSS.call(labels, projections)) + tf.reduce_mean(values)
        return loss, {"loss": loss}

    metrics, gradients, _ = gradient_cache.cached_gradients(
        model, images, joint, microbatch_size=3, other_variables=head.trainable_variables
    )
    with tf.GradientTape() as tape:
        embeddings, projections = model(images, training=True, return_embeddings=True)
        loss, _ = joint(embeddings, projections)
    expected = tape.gradient(loss, [*model.trainable_variables, *head.trainable_variables])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    assert_same(gradients, expected)


def test_pieces_on_two_replicas_give_the_gradient_of_the_global_batch(two_replicas):
    images, labels = draw_batch()
    with two_replicas.scope():
        model = create_model()

    @tf.function(autograph=False)
    def cached(images, labels):
        def on_replica(images, labels):
            _, gradients, _ = gradient_cache.cached_gradients(
                model, images, objective(labels), microbatch_size=2
            )
            return tf.distribute.get_replica_context().all_reduce("SUM", gradients)

        return two_replicas.run(on_replica, args=(images, labels))

    def share(tensor):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tensor[context.replica_id_in_sync_group * 6 :][:6]
        )

    gradients = [
        two_replicas.experimental_local_results(gradient)[0]
        for gradient in cached(share(images), share(labels))
    ]
    _, expected = whole_gradients(create_model(), images, labels)
    assert_same(gradients, expected)


def test_moving_averages_are_those_of_one_pass_over_the_pieces():
    images, labels = draw_batch()

    def create():
        encoder = contrastive.create_encoder(
            "tiny",
            image_size=8,
            first_conv_kernel_size=3,
            first_conv_stride=1,
            use_initial_max_pool=False,
            use_global_batch_norm=False,
        )
        return create_model(encoder)

    model, by_hand = create(), create()
    by_hand.set_weights(model.get_weights())
    gradient_cache.cached_gradients(model, images, objective(labels), microbatch_size=4)
    for start in (0, 4, 8):
        by_hand(images[start : start + 4], training=True)
    for a, b in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_piece_that_does_not_divide_the_batch_is_refused():
    images, _ = draw_batch()
    with pytest.raises(ValueError, match="microbatch_size=5 must divide .* 12"):
        gradient_cache.cached_gradients(create_model(), images, objective(None), microbatch_size=5)

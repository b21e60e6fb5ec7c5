"""Frozen batch norm: it normalizes with its stored statistics, and nothing of it moves."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import own_encoders
from helpers.command import run_inside
from helpers.replicas import split

from supcon_tf.losses import supcon
from supcon_tf.losses.momentum_queue import MomentumQueue
from supcon_tf.models import applications, batch_norm, contrastive
from supcon_tf.training import optimizers, steps

SIDE, BATCH = 8, 16
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, [BATCH, 2, SIDE, SIDE, 3]).astype(np.uint8)
LABELS = (np.arange(BATCH) % 4).astype(np.int32)


def create_encoder(*, is_frozen):
    """An encoder whose stored statistics are not those of the images."""
    keras.utils.set_random_seed(0)
    encoder = own_encoders.small_convolution(SIDE)
    values = np.random.default_rng(1)
    for variable in norm_variables(encoder):
        variable.assign(values.uniform(0.5, 1.5, variable.shape))
    if is_frozen:
        batch_norm.freeze_batch_norm(encoder)
    return encoder


def norm_layers(encoder):
    kind = keras.layers.BatchNormalization
    return [layer for layer in encoder._flatten_layers() if isinstance(layer, kind)]


def norm_variables(encoder):
    """Scale, offset, mean and variance of every layer."""
    return [variable for layer in norm_layers(encoder) for variable in layer.variables]


def contrastive_step(encoder, with_queue=False):
    model = contrastive.ContrastiveModel(encoder)
    loss = supcon.SupConLoss(reduction=None)
    return steps.ContrastiveStep(
        model=model,
        loss=loss,
        optimizer=optimizers.create_optimizer("momentum", 0.5),
        queue=MomentumQueue(model, loss, queue_size=32, momentum=0.5) if with_queue else None,
        global_batch_size=BATCH,
    )


def classifier_step(encoder):
    batch_norm.use_fused_batch_norm(encoder)
    return steps.ClassifierStep(
        encoder=encoder,
        linear_head=contrastive.create_linear_head(16, 4),
        optimizer=optimizers.create_optimizer("momentum", 0.5),
        global_batch_size=BATCH,
        train_encoder=True,
    )


def take_steps(strategy, step, count=3):
    @tf.function(autograph=False)
    def run(images, labels):
        strategy.run(lambda x, y: step({"image": x, "label": y}), args=(images, labels))

    for _ in range(count):
        run(*split(strategy, IMAGES, LABELS))


CASES = {
    "pretrain": contrastive_step,
    "queue": lambda encoder: contrastive_step(encoder, with_queue=True),
    "finetune": classifier_step,
}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize(
    "case",
    ["pretrain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("queue", "finetune"))],
)
def test_frozen_layers_stay_as_they_are_and_the_others_train(two_replicas, case, is_frozen):
    """Over two replicas; without the option, the same steps move all that belongs to them."""
    with two_replicas.scope():
        encoder = create_encoder(is_frozen=is_frozen)
        step = CASES[case](encoder)
    before = [variable.numpy() for variable in norm_variables(encoder)]
    kernels = [layer.kernel.numpy() for layer in encoder.layers if hasattr(layer, "kernel")]
    take_steps(two_replicas, step)
    after = [variable.numpy() for variable in norm_variables(encoder)]
    assert len(before) == 8
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [is_frozen] * 8
    trained = [layer.kernel.numpy() for layer in encoder.layers if hasattr(layer, "kernel")]
    assert not any(map(np.array_equal, kernels, trained))
    if case == "queue" and is_frozen:
        keys = [variable.numpy() for variable in norm_variables(step.queue.key_model.encoder)]
        assert all(map(np.array_equal, before, keys))


@pytest.mark.slow
def test_replicas_train_as_one_device(two_replicas):
    weights = {}
    for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), two_replicas):
        with strategy.scope():
            encoder = create_encoder(is_frozen=True)
            step = contrastive_step(encoder)
        take_steps(strategy, step)
        weights[strategy] = encoder.get_weights()
    for one, two in zip(*weights.values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_normalizes_with_its_statistics_in_training():
    encoder = create_encoder(is_frozen=True)
    images = tf.cast(IMAGES[:, 0], tf.float32)
    before = encoder(images, training=True)
    np.testing.assert_array_equal(before, encoder(images, training=False))
    batch_norm.unfreeze_batch_norm(encoder)
    assert np.abs(encoder(images, training=True) - before).max() > 0.01


def test_layers_that_were_frozen_before_stay_frozen_when_the_model_is_saved():
    encoder = own_encoders.small_convolution(SIDE)
    first, second = norm_layers(encoder)
    first.trainable = False
    batch_norm.freeze_batch_norm(encoder)
    assert not first.trainable and not second.trainable
    batch_norm.unfreeze_batch_norm(encoder)
    assert not first.trainable and second.trainable


def test_nested_networks_are_frozen_too():
    encoder = contrastive.create_encoder(
        applications.PREFIX + "MobileNet", image_size=32, alpha=0.25
    )
    batch_norm.freeze_batch_norm(encoder)
    assert len(norm_layers(encoder)) == 27 == len(encoder.trainable_variables)


def test_an_encoder_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="tiny_vit has no batch norm layers to freeze"):
        batch_norm.freeze_batch_norm(own_encoders.tiny_vit())


@pytest.mark.slow
def test_the_command_keeps_batch_norm_in_both_stages_and_saves_it_trainable(tmp_path):
    encoder = create_encoder(is_frozen=False)
    encoder.save(tmp_path / "start.keras")
    run_inside(
        "--mode=pretrain,finetune", f"--encoder={tmp_path / 'start.keras'}", "--freeze_batch_norm",
        "--num_images=64", "--batch_size=16", "--pretrain_epochs=2", "--pretrain_warmup_epochs=0",
        "--finetune_epochs=2", "--knn_interval_epochs=0", "--pretrain_weight_decay=0.1",
        "--strategy=mirrored", "--logical_cpus=4", f"--model_dir={tmp_path / 'run'}",
    )  # fmt: skip
    expected = [variable.numpy() for variable in norm_variables(encoder)]
    kernels = [encoder.layers[2].kernel.numpy()]
    for stage in ("pretrain", "finetune"):
        saved = keras.models.load_model(tmp_path / f"run/{stage}/encoder.keras")
        assert all(map(np.array_equal, [v.numpy() for v in norm_variables(saved)], expected))
        assert all(layer.trainable for layer in norm_layers(saved))
        kernels.append(saved.layers[2].kernel.numpy())
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])

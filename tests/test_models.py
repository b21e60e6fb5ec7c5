import keras
import numpy as np
import pytest
import tensorflow as tf

from supcon_tf.losses.supcon import SupConLoss, supcon_loss
from supcon_tf.models import contrastive, resnet

SIDE = 8


def create_tiny(**options):
    return contrastive.create_encoder(
        "tiny",
        image_size=SIDE,
        first_conv_kernel_size=3,
        first_conv_stride=1,
        use_initial_max_pool=False,
        **options,
    )


def create_contrastive(layer_sizes=(16,), *, normalize_embedding=True, **head_options):
    keras.utils.set_random_seed(0)
    head = contrastive.ProjectionHead(layer_sizes, **head_options)
    return contrastive.ContrastiveModel(
        create_tiny(), head, normalize_embedding=normalize_embedding
    )


@pytest.fixture(scope="module")
def model():
    return create_contrastive((12, 6))


def draw_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, SIDE, SIDE, 3)).astype(np.uint8)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def weight_names(layer):
    return [weight.path.split("/")[-1] for weight in layer.trainable_weights]


def num_parameters(layer_sizes, num_features=2048, **options):
    head = contrastive.ProjectionHead(layer_sizes, **options)
    head.build((None, num_features))
    return sum(np.prod(weight.shape) for weight in head.trainable_weights)


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_views_go_through_the_encoder_one_by_one(model, num_views):
    images = draw_images(4, num_views)
    output = model(images)
    assert output.shape == (4, num_views, 6) and output.dtype == tf.float32
    for view in range(num_views):
        embedding = model.encoder(images[:, view].astype(np.float32))
        np.testing.assert_allclose(
            output[:, view], model.projection_head(unit(embedding)), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(model.embed(images)[:, view], embedding, rtol=1e-4, atol=1e-5)


def test_projections_have_unit_norm(model):
    norms = np.linalg.norm(model(draw_images(5, 2)), axis=-1)
    np.testing.assert_allclose(norms, np.ones([5, 2]), rtol=1e-5)


def test_images_without_a_view_axis_are_one_view(model):
    images = draw_images(4)
    np.testing.assert_array_equal(model(images), model(images[:, None]))
    assert model(images).shape == (4, 1, 6)


def test_integer_and_float_images_are_equal(model):
    images = draw_images(3, 2)
    np.testing.assert_array_equal(model(images), model(images.astype(np.float32)))


def test_an_unknown_batch_and_the_declared_shape_agree(model):
    spec = tf.TensorSpec([None, 2, SIDE, SIDE, 3], tf.uint8)
    compiled = tf.function(model, input_signature=[spec])
    images = draw_images(3, 2)
    np.testing.assert_allclose(compiled(images), model(images), rtol=1e-4, atol=1e-5)
    assert compiled.get_concrete_function().structured_outputs.shape.as_list() == [None, 2, 6]
    assert model.compute_output_shape((None, 2, SIDE, SIDE, 3)) == (None, 2, 6)
    assert model.compute_output_shape((None, SIDE, SIDE, 3)) == (None, 1, 6)


def test_normalize_embedding_decides_what_the_head_sees():
    """A head with a bias tells a long embedding from a unit one, although its output is unit."""
    images = draw_images(4, 1)
    for normalize in (True, False):
        model = create_contrastive((12, 6), normalize_embedding=normalize)
        model.projection_head.steps[0].bias.assign(np.linspace(-0.03, 0.03, 12))
        embedding = model.embed(images)[:, 0].numpy()
        expected, other = (
            model.projection_head(x) for x in (embedding, unit(embedding))[:: 1 - 2 * normalize]
        )
        np.testing.assert_allclose(model(images)[:, 0], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - other).max() > 0.01


@pytest.mark.parametrize("how", ["whole", "in parts"])
def test_training_flag_reaches_encoder_and_head(how):
    """In parts too, as the training loop calls it, where Keras hands no flag on by itself."""
    model = create_contrastive((12, 6), use_batch_norm=True)
    images = draw_images(4, 2)
    norms = [
        layer
        for layer in (*model.encoder.layers, *model.projection_head.steps)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [norm.moving_mean.numpy() for norm in norms]

    def call(training):
        if how == "whole":
            return model(images, training=training)
        return model.project(model.embed(images, training=training), training=training)

    call(training=False)
    for norm, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(norm.moving_mean, mean)
    call(training=True)
    for norm, mean in zip(norms, before, strict=True):
        assert np.any(norm.moving_mean.numpy() != mean)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_head_has_a_bias_in_every_layer_but_the_last(num_layers):
    head = contrastive.ProjectionHead([4] * num_layers)
    head.build((None, 5))
    names = weight_names(head)
    assert names.count("kernel") == num_layers
    assert names.count("bias") == num_layers - 1
    assert names[-1] == "kernel"
    assert names.count("gamma") == names.count("beta") == 0


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("beta", [True, False])
def test_head_with_batch_norm_has_no_bias(num_layers, beta):
    head = contrastive.ProjectionHead(
        [4] * num_layers, use_batch_norm=True, use_batch_norm_beta=beta
    )
    head.build((None, 5))
    names = weight_names(head)
    assert names.count("kernel") == num_layers
    assert names.count("bias") == 0
    assert names.count("gamma") == num_layers - 1
    assert names.count("beta") == (num_layers - 1 if beta else 0)


def test_head_batch_norm_has_the_constants_of_the_encoder():
    for synchronized in (True, False):
        head = contrastive.ProjectionHead(
            [4, 4], use_batch_norm=True, use_global_batch_norm=synchronized
        )
        (norm,) = (step for step in head.steps if isinstance(step, keras.layers.BatchNormalization))
        assert (norm.momentum, norm.epsilon) == (
            resnet.BATCH_NORM_MOMENTUM,
            resnet.BATCH_NORM_EPSILON,
        )
        assert norm.synchronized is synchronized


def test_head_is_the_formula_of_the_reference():
    head = contrastive.ProjectionHead([7, 3])
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    head.build(x.shape)
    first, second = head.steps[0], head.steps[2]
    first.bias.assign(np.linspace(-0.01, 0.01, 7))
    hidden = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0)
    np.testing.assert_allclose(head(x), unit(hidden @ second.kernel.numpy()), rtol=1e-4, atol=1e-5)


def test_head_kernels_start_small_and_biases_at_zero():
    head = contrastive.ProjectionHead([256, 128])
    head.build((None, 256))
    for weight in head.trainable_weights:
        if weight.path.endswith("kernel"):
            np.testing.assert_allclose(np.std(weight), 0.01, rtol=0.05)
            np.testing.assert_allclose(np.mean(weight), 0, atol=3e-4)
        else:
            np.testing.assert_array_equal(weight, np.zeros(256))


def test_head_parameter_counts_equal_the_reference():
    assert num_parameters([128]) == 262_144
    assert num_parameters([2048, 128]) == 4_458_496
    assert num_parameters([2048, 2048, 128], use_batch_norm=True) == 8_658_944


@pytest.mark.parametrize("num_classes,expected", [(1000, 2_049_000), (10, 20_490)])
def test_linear_head_parameter_counts_equal_the_reference(num_classes, expected):
    head = contrastive.create_linear_head(2048, num_classes)
    assert sum(np.prod(weight.shape) for weight in head.trainable_weights) == expected
    assert len(head.trainable_weights) == 2


def test_default_head_is_one_layer_of_128():
    model = contrastive.ContrastiveModel(create_tiny())
    assert model.projection_head.layer_sizes == (128,)
    assert model.normalize_embedding


def test_head_refuses_another_rank():
    for shape in ([None, 2, 4], [4]):
        with pytest.raises(ValueError, match=r"takes \[batch, features\], not"):
            contrastive.ProjectionHead([3]).build(shape)


@pytest.mark.parametrize("layer_sizes", [[], [0], [4, -1]])
def test_head_refuses_bad_sizes(layer_sizes):
    with pytest.raises(ValueError, match="one or more sizes of at least 1"):
        contrastive.ProjectionHead(layer_sizes)


def test_head_survives_serialisation_with_every_argument():
    changed = {
        "layer_sizes": [5, 3],
        "use_batch_norm": True,
        "use_batch_norm_beta": False,
        "use_global_batch_norm": False,
    }
    config = contrastive.ProjectionHead(**changed).get_config()
    assert {name: config[name] for name in changed} == changed
    assert contrastive.ProjectionHead.from_config(config).get_config() == config
    defaults = contrastive.ProjectionHead().get_config()
    assert all(defaults[name] != value for name, value in changed.items())


def test_a_saved_contrastive_model_is_the_same_model(tmp_path):
    model = create_contrastive(
        (12, 6), normalize_embedding=False, use_batch_norm=True, use_batch_norm_beta=False
    )
    images = draw_images(3, 2)
    model(images, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.normalize_embedding is False
    assert loaded.projection_head.get_config() == model.projection_head.get_config()
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_loss_trains_it_under_fit():
    """Four gray levels as four classes: the loss nears that of classes on one point each.

    There, each of the 7 positives of an anchor has probability 1/7: t log 7.
    """
    model = create_contrastive((16,))
    # XLA, which Keras would choose, takes long to compile the encoder; a test below has it.
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=SupConLoss(), jit_compile=False)
    labels = np.arange(32) % 4
    noise = np.random.default_rng(0).integers(0, 40, (32, 2, SIDE, SIDE, 3))
    images = (noise + 50 * labels[:, None, None, None, None]).astype(np.uint8)
    history = model.fit(images, labels, batch_size=16, epochs=6, verbose=0).history["loss"]
    lowest = 0.1 * np.log(7)
    assert lowest < history[-1] < lowest + 0.5 * (history[0] - lowest)
    np.testing.assert_allclose(
        model.evaluate(images, labels, batch_size=32, verbose=0),
        np.mean(supcon_loss(labels, model(images))),
        rtol=1e-5,
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_head_is_one_affine_map(normalize):
    head = contrastive.create_linear_head(5, 3, normalize_embedding=normalize)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    kernel, bias = head.trainable_weights
    bias.assign([1.0, 2.0, 3.0])
    expected = (unit(x) if normalize else x) @ kernel.numpy() + [1, 2, 3]
    np.testing.assert_allclose(head(x), expected, rtol=1e-5, atol=1e-6)


def test_linear_head_starts_as_glorot_or_at_zero():
    assert not np.any(
        contrastive.create_linear_head(5, 3, zero_initialize=True).trainable_weights[0]
    )
    kernel = contrastive.create_linear_head(300, 100).trainable_weights[0].numpy()
    limit = np.sqrt(6 / 400)
    assert 0.98 * limit < np.abs(kernel).max() <= limit


def test_classifier_is_the_linear_head_on_the_frozen_encoder():
    """Even when the caller says training=True, batch norm neither uses nor updates the batch."""
    encoder, head = create_tiny(), contrastive.create_linear_head(64, 3)
    images = draw_images(4).astype(np.float32)
    encoder(images, training=True)
    statistics = [variable.numpy() for variable in encoder.non_trainable_variables]
    classifier = contrastive.create_classifier(encoder, head)
    expected = head(encoder(images, training=False))
    for training in (True, False):
        np.testing.assert_allclose(classifier(images, training=training), expected, rtol=1e-5)
    for variable, before in zip(
        [v for v in encoder.variables if "moving" in v.path], statistics, strict=True
    ):
        np.testing.assert_array_equal(variable, before)
    assert [v.path for v in classifier.trainable_variables] == [
        v.path for v in head.trainable_variables
    ]


@pytest.mark.parametrize("normalize", [True, False])
def test_projector_is_the_part_behind_the_encoder(normalize, tmp_path):
    model = create_contrastive((12, 6), normalize_embedding=normalize, use_batch_norm=True)
    images = draw_images(4)
    model(images, training=True)
    projector = contrastive.create_projector(model)
    embeddings = model.encoder(images.astype(np.float32))
    np.testing.assert_allclose(projector(embeddings), model(images)[:, 0], rtol=1e-5, atol=1e-6)
    projector.save(tmp_path / "projection_head.keras")
    loaded = keras.models.load_model(tmp_path / "projection_head.keras")
    np.testing.assert_array_equal(loaded(embeddings), projector(embeddings))


def test_any_keras_model_of_the_contract_is_an_encoder():
    inputs = keras.Input([SIDE, SIDE, 3])
    encoder = keras.Model(inputs, keras.layers.Dense(9)(keras.layers.Flatten()(inputs)))
    model = contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead([5]))
    images = draw_images(3, 2)
    assert model(images).shape == (3, 2, 5)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=SupConLoss())
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(images, np.array([0, 0, 1]), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert len(before) == 3  # kernel and bias of the encoder, kernel of the head
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.any(new.numpy() != old)


def test_a_tensorflow_checkpoint_holds_every_variable(tmp_path):
    """The head's batch norm too, which no optimizer holds a second time."""
    head = contrastive.ProjectionHead([6, 4], use_batch_norm=True)
    model = contrastive.ContrastiveModel(create_tiny(), head)
    before = [variable.numpy() + 1.0 for variable in model.variables]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "state"))
    for variable in model.variables:
        variable.assign(variable * 0.0)
    tf.train.Checkpoint(model=model).read(path)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)

"""`SupConClassifier`: scikit-learn's conventions, and the training of the command."""

import doctest
import pickle
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import tiny_training
from helpers.command import run_inside
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from supcon_tf import SupConClassifier, SupConLoss, estimator, fitting
from supcon_tf.data import defaults, in_memory, sources, whitening
from supcon_tf.fit_settings import Settings
from supcon_tf.training import checkpoint, time_budget

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
NAMES = np.array(["lion", "cat", "tiger"])  # Not in sorted order.
NUM_DIGITS = 192
# check_estimator fits rows of numbers, float [N, F], which are no images.
NEEDS_ROWS = """
check_fit_score_takes_y check_estimators_overwrite_params check_dont_overwrite_parameters
check_estimators_fit_returns_self check_readonly_memmap_input check_n_features_in_after_fitting
check_positive_only_tag_during_fit check_estimators_dtypes check_complex_data check_dtype_object
check_estimators_empty_data_messages check_pipeline_consistency check_estimators_nan_inf
check_estimators_pickle check_f_contiguous_array_estimator check_classifier_data_not_an_array
check_classifiers_one_label check_classifiers_classes check_classifiers_train
check_classifiers_regression_target check_classifiers_multilabel_representation_invariance
check_classifiers_multilabel_output_format_predict
check_classifiers_multilabel_output_format_predict_proba
check_classifiers_multilabel_output_format_decision_function check_supervised_y_2d
check_transformer_data_not_an_array check_transformer_general
check_methods_sample_order_invariance check_methods_subset_invariance check_fit2d_1sample
check_fit2d_1feature check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted
check_n_features_in check_fit2d_predict1d
"""


def some_examples(count=48):
    """Images uint8 [M, 8, 8, 3] of three classes that differ in brightness, and their names."""
    source = tiny_training.create_source(count)
    return source.images, NAMES[source.labels]


def create_model():
    """The same weights every time."""
    keras.utils.set_random_seed(0)
    return tiny_training.create_encoder()


def small(**options):
    """An estimator that is compiled in a second: few steps of a small encoder."""
    options = {"encoder": create_model(), "epochs": 2, "batch_size": 16, **options}
    return SupConClassifier(augmentation="identity", verbose=0, **options)


def weights(fitted):
    return fitted.classifier_.get_weights()


def all_equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def digits():
    """Fitted with the defaults on the first digits."""
    train = sources.load_source("digits", "train")
    classifier = SupConClassifier(epochs=2, verbose=0)
    return classifier.fit(train.images[:NUM_DIGITS], train.labels[:NUM_DIGITS])


@pytest.fixture(scope="module")
def examples():
    return some_examples()


@pytest.fixture(scope="module")
def fitted(examples):
    """A small estimator, the model it was given, and that model's weights before `fit`."""
    model = create_model()
    before = model.get_weights()
    return small(encoder=model).fit(*examples, validation_data=examples), model, before


def test_the_page_lists_every_parameter_and_its_code_is_python():
    page = PAGE.read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(SupConClassifier().get_params())
    for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        compile(code, str(PAGE), "exec")


def test_the_docstring_is_true():
    assert doctest.testmod(estimator).attempted > 5


@pytest.mark.slow
def test_the_weights_are_those_of_the_command(digits, tmp_path):
    """Digits with whitening measured as for a folder: fit does what pretrain,linear do."""
    source = sources.first_examples(sources.load_source("digits", "train"), NUM_DIGITS)
    measured = whitening.measure_whitening(fitting.examples_in_order(source, digits.image_size_))
    mean, std = (",".join(map(str, values)) for values in measured)
    run_inside(
        "--mode=pretrain,linear", f"--model_dir={tmp_path}", f"--num_images={NUM_DIGITS}",
        "--pretrain_epochs=2", "--whitening=given", f"--whitening_mean={mean}",
        f"--whitening_std={std}",
    )  # fmt: skip
    saved = keras.models.load_model(tmp_path / "linear/classifier.keras")
    assert all_equal(weights(digits), saved.get_weights())


def test_defaults_are_those_of_the_command():
    command, parameters = flags.FLAGS, SupConClassifier().get_params()
    for name, flag in {
        "temperature": "temperature",
        "loss": "loss",
        "random_state": "seed",
    }.items():
        assert parameters[name] == command[flag].default, name
    images = np.zeros([2_000, 40, 50, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(2_000, np.int32), ("a", "b"))
    gray = Settings.choose(source)
    assert gray.warmup_epochs == command["pretrain_warmup_epochs"].default
    assert command["pretrain_optimizer"].default == "adam"
    assert command["eval_batch_size"].default == fitting.EVAL_BATCH_SIZE
    assert command["knn_interval_epochs"].default == fitting.KNN_INTERVAL_EPOCHS
    assert not gray.chosen.horizontal_flip
    images[0, 0, 0] = (1, 2, 3)
    facts = defaults.ImageFacts(num_examples=2_000, side_px=40, is_color=True, num_classes=2)
    assert Settings.choose(source).chosen == defaults.choose(facts)


def test_what_is_given_wins_over_the_table():
    images = np.random.default_rng(0).integers(0, 255, [80, 90, 90, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(80, np.int32), ("a", "b"))
    large = Settings.choose(source, is_large_carried=True)
    assert (large.encoder, large.chosen.image_size) == ("resnet_v1", 90)
    assert Settings.choose(source, is_large_carried=False).chosen.image_size == 48
    minute = Settings.choose(source, time_budget_minutes=1)
    assert minute.encoder == "tiny" and "CPU core" in minute.notes[0]
    given = Settings.choose(source, encoder="tiny", cross_entropy_weight=0.5, batch_size=8)
    assert given.chosen.cross_entropy_weight == 0.5
    assert (given.chosen.batch_size, given.chosen.image_size) == (8, 48)
    for loss in ("triplet", "cross_entropy", SupConLoss(use_labels=False)):
        assert Settings.choose(source, encoder="tiny", loss=loss).chosen.cross_entropy_weight == 0
    assert Settings.choose(source, encoder="tiny", loss="cross_entropy").chosen.num_views == 1


def test_label_smoothing_reaches_the_step():
    images = np.random.default_rng(0).integers(0, 255, [80, 8, 8, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(80, np.int32), ("a", "b"))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)

    def create_step(**options):
        settings = Settings.choose(source, encoder=create_model(), **options)
        return fitting.create_step(settings, source, schedule)

    joint = create_step(pretrain_label_smoothing=0.3)
    assert joint.classification.label_smoothing == 0.3
    assert create_step(loss="cross_entropy", pretrain_label_smoothing=0.2).label_smoothing == 0.2
    assert create_step(loss="cross_entropy").label_smoothing == 0


def test_a_resumed_training_keeps_what_an_older_release_chose(monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, [80, 20, 20, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(80, np.int32), ("a", "b"))
    before = Settings.choose(source)
    record = before.record()
    record.pop("pretrain_label_smoothing")  # It was not recorded then.
    monkeypatch.setattr(defaults, "MANY_EXAMPLES", 80)
    now = Settings.choose(source)
    assert now.chosen.pretrain_label_smoothing == 0.1 and not now.chosen.normalize_embedding
    assert Settings.choose(source, recorded=record).chosen == before.chosen
    given = Settings.choose(source, recorded=record, num_views=2, encoder=create_model())
    assert (given.chosen.num_views, given.chosen.image_size) == (2, 8)
    for options in ({"encoder": create_model()}, {"encoder_weights": "some.weights.h5"}):
        assert Settings.choose(source, **options).chosen.pretrain_label_smoothing == 0


def test_one_view_is_chosen_for_the_loss_that_it_was_measured_with():
    images = np.random.default_rng(0).integers(0, 255, [80, 20, 20, 3], np.uint8)
    source = sources.ArraySource(images, np.zeros(80, np.int32), ("a", "b"))
    assert Settings.choose(source).chosen.num_views == 1
    assert Settings.choose(source, num_views=3).chosen.num_views == 3
    for loss in ("triplet", SupConLoss(use_labels=False), SupConLoss(spread_weight=0.5)):
        given = {"loss": loss, "cross_entropy_weight": 1.0}
        assert Settings.choose(source, **given).chosen.num_views == 2
    with pytest.raises(ValueError, match="num_views=2 does nothing.*leave it out"):
        Settings.choose(source, loss="cross_entropy", num_views=2)


def test_randaugment_needs_its_level(examples):
    with pytest.raises(ValueError, match='"randaugment" needs .*augmentation_magnitude=9'):
        SupConClassifier(augmentation="randaugment", verbose=0).fit(*examples)
    source = sources.ArraySource(np.zeros([30, 8, 8, 3], np.uint8), np.zeros(30, np.int32), ("a",))
    chosen = Settings.choose(
        source, augmentation_type="randaugment", augmentation_magnitude=9
    ).chosen
    assert (chosen.augmentation_type, chosen.augmentation_magnitude) == ("randaugment", 9)


def test_few_examples_get_a_smaller_batch_and_a_shorter_warm_up():
    source = sources.ArraySource(np.zeros([30, 8, 8, 3], np.uint8), np.zeros(30, np.int32), ("a",))
    settings = Settings.choose(source, pretrain_epochs=1, num_replicas=4)
    assert (settings.chosen.batch_size, settings.warmup_epochs) == (28, 1)
    with pytest.raises(ValueError, match=r"batch_size=31 .* 30 "):
        Settings.choose(source, batch_size=31)


@pytest.mark.slow
def test_a_time_budget_chooses_epochs_and_a_resumed_training_keeps_them(
    examples, tmp_path, monkeypatch
):
    """The steps that are timed leave no trace, and a slower machine changes nothing."""

    def seconds(later):
        measure = time_budget.measure_step

        def measure_and_pretend(*args, **options):
            measure(*args, **options)
            return time_budget.StepTime(first=1.0, later=later)

        monkeypatch.setattr(fitting.time_budget, "measure_step", measure_and_pretend)

    seconds(120.0)
    monkeypatch.setattr(time_budget, "MEASURE_SECONDS", 0.0)
    budget = {"epochs": None, "time_budget_minutes": 100, "checkpoint_dir": tmp_path}
    first = small(**budget).fit(*examples)
    # 0.95 * (6000 s - the stages afterwards - the time so far) / 120 s = 47 steps, three of them
    # in an epoch.
    assert 40 / 3 < first.epochs_ <= 47 / 3
    seconds(12_000.0)
    again = small(**budget).fit(*examples)
    assert again.epochs_ == first.epochs_ and all_equal(weights(again), weights(first))
    with pytest.raises(ValueError, match="too short.*time_budget_minutes=42"):
        small(**budget | {"checkpoint_dir": None}).fit(*examples)
    with pytest.raises(ValueError, match="epochs=3 cannot be given too"):
        small(epochs=3, time_budget_minutes=1).fit(*examples)


def test_fit_changes_nothing_that_it_was_given(fitted, examples):
    estimator_, model, before = fitted
    assert estimator_.encoder is model and estimator_.encoder_ is not model
    assert all_equal(model.get_weights(), before)
    assert not all_equal(estimator_.encoder_.get_weights(), before)
    again = clone(estimator_)
    assert again.get_params()["epochs"] == 2 and not hasattr(again, "classifier_")
    state = np.random.get_state()[1].copy()
    again.fit(*examples)
    assert np.array_equal(state, np.random.get_state()[1])  # The program's own random numbers.
    assert all_equal(weights(again), weights(estimator_))


def test_answers_have_the_labels_that_were_given(fitted, examples):
    images, labels = examples
    classifier = fitted[0]
    assert classifier.classes_.tolist() == sorted(NAMES)
    probabilities = classifier.predict_proba(images)
    assert probabilities.shape == (len(images), 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    predicted = classifier.predict(images)
    assert predicted.tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    assert classifier.score(images, labels) == np.mean(predicted == labels) > 0.5
    assert classifier.validation_score_ == classifier.score(images, labels)
    assert classifier.history_[-1]["knn_accuracy"] > 0.5
    assert classifier.score(images[:4], ["wolf"] * 4) == 0.0
    assert classifier.transform(images).shape == (len(images), 6)
    assert classifier.get_feature_names_out()[-1] == "supconclassifier5"
    np.testing.assert_allclose(  # In small batches too.
        classifier.predict_proba(images[:3]), probabilities[:3], rtol=1e-4, atol=1e-6
    )


def test_pickled_and_saved_it_answers_the_same(fitted, examples, tmp_path):
    classifier, images = fitted[0], examples[0]
    classifier.save(tmp_path / "saved")
    for other in (
        pickle.loads(pickle.dumps(classifier)),
        SupConClassifier.load(tmp_path / "saved"),
    ):
        assert np.array_equal(other.predict_proba(images), classifier.predict_proba(images))
        assert other.predict(images).tolist() == classifier.predict(images).tolist()
        assert all_equal(other.encoder.get_weights(), classifier.encoder.get_weights())
        assert other.history_ == classifier.history_
    plain = keras.models.load_model(tmp_path / "saved/classifier.keras")
    assert plain(images[:2].astype("float32")).shape == (2, 3)
    (tmp_path / "saved/estimator.json").write_text("{}")
    with pytest.raises(ValueError, match="estimator.json"):
        SupConClassifier.load(tmp_path / "saved")


def test_it_resumes_bit_for_bit(fitted, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_STEPS", 2)
    save = checkpoint.CheckpointFolder.save

    def save_and_stop(self, step):
        save(self, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointFolder, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            small(checkpoint_dir=tmp_path).fit(*examples)
    assert checkpoint.newest_record(str(tmp_path / "checkpoints"))["step"] == 2
    with pytest.raises(ValueError, match=r"temperature: 0.1  ->  0.2[^$]*checkpoint_dir"):
        small(checkpoint_dir=tmp_path, temperature=0.2).fit(*examples)
    with pytest.raises(ValueError, match="training data"):
        small(checkpoint_dir=tmp_path).fit(examples[0], examples[1][::-1])
    resumed = small(checkpoint_dir=tmp_path, random_state=None).fit(*examples)
    assert resumed.seed_ == 0  # That of the training in the folder.
    assert all_equal(weights(resumed), weights(fitted[0]))


def test_it_checks_as_scikit_learn_asks():
    class ForChecks(SupConClassifier):  # Else scikit-learn leaves out every check.
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    reasons = dict.fromkeys(NEEDS_ROWS.split(), "takes images, not rows of numbers")
    results = check_estimator(
        ForChecks(verbose=0), expected_failed_checks=reasons, on_skip=None, on_fail="raise"
    )
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert "check_estimators_unfitted" in passed and "check_get_params_invariance" in passed
    assert not passed & set(NEEDS_ROWS.split())


def test_it_is_not_fitted_before_fit(examples):
    for method in ("predict", "predict_proba", "transform"):
        with pytest.raises(NotFittedError):
            getattr(SupConClassifier(), method)(examples[0])
    with pytest.raises(NotFittedError):
        SupConClassifier().save("nowhere")


@pytest.mark.slow
def test_it_works_in_a_pipeline_and_a_grid_search(examples):
    images, labels = examples
    pipeline = make_pipeline(FunctionTransformer(lambda x: 255 - x), small())
    pipeline.fit(images, labels)
    assert pipeline.score(images, labels) > 0.5
    search = GridSearchCV(small(), {"temperature": [0.05, 0.5]}, cv=2).fit(images, labels)
    assert search.cv_results_["mean_test_score"].shape == (2,)
    assert search.best_estimator_.temperature in (0.05, 0.5)


def test_images_with_several_labels(examples):
    images, labels = examples
    multi_hot = np.stack([labels == "lion", labels != "tiger"], axis=1)
    classifier = small(loss=SupConLoss(temperature=0.2))
    classifier.fit(images, multi_hot, validation_data=(images, multi_hot))
    assert classifier.history_[-1]["knn_mean_average_precision"] > 0.7
    probabilities = classifier.predict_proba(images)
    assert probabilities.shape == multi_hot.shape
    assert np.array_equal(classifier.predict(images), probabilities > 0.5)
    score = classifier.score(images, multi_hot)
    assert score == average_precision_score(multi_hot, probabilities, average="macro") > 0.8
    assert classifier.validation_score_ == score
    with pytest.raises(ValueError, match="npairs.*supcon"):
        small(loss="npairs").fit(images, multi_hot)


def test_a_dataset_stands_for_arrays():
    images, labels = some_examples(6)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    for each in (dataset, dataset.batch(4)):
        found_images, found_labels = in_memory.examples_in_memory(each)
        assert np.array_equal(found_images, images)
        assert found_labels.tolist() == labels.tolist()
    assert np.array_equal(
        in_memory.images_in_memory(dataset.map(lambda image, label: image)), images
    )
    with pytest.raises(ValueError, match="repeat"):
        in_memory.images_in_memory(dataset.repeat())
    with pytest.raises(ValueError, match="second argument"):
        in_memory.examples_in_memory(dataset, labels)
    shapes = tf.data.Dataset.range(8, 10).map(lambda n: (tf.zeros([n, 8, 3], tf.uint8), n))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) and \(9, 8, 3\)"):
        in_memory.examples_in_memory(shapes)


@pytest.mark.parametrize("labels", [[3, 1, 3], ["b", "a", "b"], [True, False, True], [2.0, 1, 2]])
def test_labels_of_any_kind(labels):
    encoding = in_memory.LabelEncoding.of(np.array(labels))
    assert encoding.encode(np.array(labels)).tolist() == [1, 0, 1]
    assert encoding.classes.tolist() == sorted(set(labels))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([1, 1, 1], "one class"),
        ([0.5, 1.5, 2.25], "continuous"),
        ([[0, 2], [1, 0], [0, 0]], "multi-hot"),
        ([[[0]], [[1]], [[0]]], r"\(3, 1, 1\)"),
    ],
)
def test_labels_that_cannot_be_used(labels, match):
    with pytest.raises(ValueError, match=match):
        in_memory.LabelEncoding.of(np.array(labels))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "contrastive"}, "contrastive.*supcon"),
        ({"loss": "npairs", "temperature": 0.5}, "temperature=0.5"),
        ({"encoder": "huge"}, "huge"),
        ({"augmentation": "auto"}, "auto"),
        ({"epochs": -1}, "epochs=-1"),
        ({"time_budget_minutes": 0}, "time_budget_minutes=0"),
        ({"loss": "cross_entropy", "cross_entropy_weight": 1.0}, "cross_entropy_weight=1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5: expected 0 to 1"),
        ({"label_smoothing": 0.1, "cross_entropy_weight": 0.0}, "no effect without a classifier"),
        ({"image_size": 16, "encoder": tiny_training.create_encoder()}, "8 x 8.*image_size=16"),
    ],
)
def test_parameters_that_cannot_be_used(options, match, examples):
    with pytest.raises(ValueError, match=match):
        SupConClassifier(verbose=0, **options).fit(*examples)


def test_labels_that_training_did_not_have(fitted, examples):
    with pytest.raises(ValueError, match="wolf"):
        small().fit(*examples, validation_data=(examples[0][:1], ["wolf"]))


def test_it_is_quiet_without_verbose(capfd, examples):
    small(epochs=0).fit(*examples)
    assert capfd.readouterr().out == ""

"""Real-valued targets: ridge regression on embeddings, its figures, and the command with them."""

import csv
import json

import numpy as np
import pytest
from absl import flags
from helpers.command import run_inside
from helpers.image_folders import encode
from helpers.trained_folder import write_trained
from sklearn.metrics import mean_absolute_error, r2_score

from supcon_tf import SupConClassifier, load_run
from supcon_tf.evaluation import intervals, linear_fit, multi_label, prediction_files
from supcon_tf.evaluation.predict_images import Gallery, target_values
from supcon_tf.models import contrastive
from supcon_tf.stages import evaluate

SMALL = ("--eval_batch_size=16", "--strategy=one_device")


def random_regression(seed=0, count=40, num_features=5):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=[count, num_features]) * rng.uniform(0.1, 9, num_features) + 3
    targets = embeddings @ rng.normal(size=num_features) + rng.normal(size=count) + 100
    return embeddings.astype(np.float32), targets


def solve_ridge(features, targets, penalty):
    """Coefficients and bias of (X'X + penalty I) w = X'y on standardized features, in float64."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    x, y = (features - mean) / scale, targets - targets.mean()
    w = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y) / scale
    return w, targets.mean() - w @ mean


@pytest.mark.parametrize("normalize", [False, True])
def test_ridge_is_the_closed_form_at_the_penalty_with_the_least_leave_one_out_error(normalize):
    embeddings, targets = random_regression()
    fitted = linear_fit.fit_ridge(embeddings, targets, normalize_embedding=normalize)
    features = embeddings.astype(np.float64)
    if normalize:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    kernel, bias = solve_ridge(features, targets, fitted.penalty)
    np.testing.assert_allclose(fitted.kernel[:, 0], kernel, rtol=1e-4)
    np.testing.assert_allclose(fitted.bias, [bias], rtol=1e-5)
    predicted = features @ kernel + bias
    assert fitted.r2 == pytest.approx(r2_score(targets, predicted))
    assert fitted.mean_absolute_error == pytest.approx(mean_absolute_error(targets, predicted))
    # scikit-learn leaves one standardized example out; so the oracle keeps mean and scale too.
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    errors = {}
    for penalty in linear_fit.RIDGE_PENALTIES:
        errors[penalty] = 0.0
        for left_out in range(len(x)):
            kept = np.arange(len(x)) != left_out
            mean, level = x[kept].mean(axis=0), targets[kept].mean()
            a = x[kept] - mean
            w = np.linalg.solve(a.T @ a + penalty * np.eye(5), a.T @ (targets[kept] - level))
            errors[penalty] += (targets[left_out] - level - w @ (x[left_out] - mean)) ** 2
    assert fitted.penalty == min(errors, key=errors.get)


def test_the_head_of_a_classifier_predicts_what_ridge_fitted():
    embeddings, targets = random_regression(count=12)
    fitted = linear_fit.fit_ridge(embeddings, targets)
    head = contrastive.create_linear_head(5, 1)
    head.set_weights([fitted.kernel, fitted.bias])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = unit.astype(np.float64) @ fitted.kernel + fitted.bias
    np.testing.assert_allclose(head(embeddings), expected, rtol=1e-4)


def test_ridge_refuses_targets_that_are_all_equal():
    with pytest.raises(ValueError, match="8 training examples have one value"):
        linear_fit.fit_ridge(np.eye(8, 4, dtype=np.float32), np.ones(8))


def test_intervals_of_a_regression_are_those_of_the_bootstrap():
    rng = np.random.default_rng(1)
    targets = rng.normal(size=50)
    predictions = targets + rng.normal(size=50) / 3
    found = intervals.regression_intervals(predictions, targets)
    expected = intervals.bootstrap_interval(
        (predictions, targets), lambda p, t: r2_score(t, p), num_resamples=intervals.NUM_RESAMPLES
    )
    np.testing.assert_allclose(found["r2"], expected, rtol=1e-9)
    for name, value in multi_label.regression_metrics(predictions, targets).items():
        if name in found:
            assert found[name].low < value < found[name].high


def test_neighbors_predict_the_mean_of_their_targets():
    gallery = Gallery(np.eye(3, dtype=np.float32), np.array([1.0, 2.0, 9.0]), "abc", ())
    near = target_values(np.array([[0.0, 0.0, 5.0]]), None, gallery)
    assert near[0] == pytest.approx(9, abs=0.1)
    np.testing.assert_allclose(target_values(np.eye(1), np.array([[4.5]]), None), [4.5])
    with pytest.raises(ValueError, match="not finite"):
        target_values(np.eye(1), np.array([[np.nan]]), None)
    found = multi_label.knn_figure(
        np.eye(3), np.array([1.0, 2.0, 9.0]), np.eye(3), np.array([1.0, 2.0, 9.0])
    )
    assert found["knn_r2"] > 0.99 and found["knn_mean_absolute_error"] < 0.1


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """A CSV file of images whose target is their brightness."""
    root = tmp_path_factory.mktemp("brightness")
    lines = ["filename,label"]
    rng = np.random.default_rng(0)
    for index in range(40):
        level = rng.uniform(20, 230)
        pixels = np.clip(rng.normal(level, 8, [20, 20, 3]), 0, 255).astype(np.uint8)
        _write_png(root / f"{index}.png", pixels)
        lines.append(f"{index}.png,{level / 255:.6f}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


def _write_png(path, pixels):
    from PIL import Image

    Image.fromarray(pixels).save(path)


@pytest.mark.slow
def test_the_command_fits_evaluates_and_predicts_numbers(tmp_path, brightness, capsys):
    run = write_trained(tmp_path / "run", with_classifier=False).model_dir
    new = tmp_path / "new"
    new.mkdir()
    for name in ("0.png", "1.png"):
        (new / name).write_bytes((brightness.parent / name).read_bytes())
    data = (f"--data_csv={brightness}", "--label_type=real", f"--model_dir={run}")
    run_inside("--mode=linear,eval,embed,predict", f"--predict_dir={new}", *data, *SMALL)
    said = capsys.readouterr().out
    linear = json.loads((run / "linear/result.json").read_text())
    result = json.loads((run / "eval/eval.json").read_text())
    assert linear["r2"] == pytest.approx(result["r2"]) and linear["train_r2"] > 0.9
    assert result["r2"] > 0.8 and result["knn_r2"] > 0.5
    for name in ("mean_absolute_error", "r2", "knn_mean_absolute_error", "knn_r2"):
        low, high = result["intervals_95"][name]
        assert low <= result[name] <= high
    assert "regression       mean absolute error" in said and "number" in said
    arrays = np.load(run / "eval/predictions.npz")
    assert r2_score(arrays["label"], arrays["prediction"]) == pytest.approx(result["r2"], abs=1e-4)
    with pytest.raises(ValueError, match="holds numbers.*numpy.load"):
        prediction_files.read_predictions(str(run / "eval/predictions.npz"))
    embedded = np.load(run / "embed/embeddings.npz")
    np.testing.assert_allclose(embedded["predictions"], arrays["prediction"], atol=1e-4)
    with open(run / "predict/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["file", "value", "nearest_1"]
    loaded = load_run(run)
    predicted = loaded.predict([str(new / "0.png"), str(new / "1.png")])
    np.testing.assert_allclose([float(row["value"]) for row in rows], predicted, rtol=1e-3)
    lines = (run / "predict/predictions.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {"file", "value", "nearest"}
    assert loaded.nearest([str(new / "0.png")], 1).labels.dtype == np.float32
    with pytest.raises(ValueError, match="predicts numbers"):
        loaded.predict_proba([str(new / "0.png")])
    with pytest.raises(ValueError, match="predicts numbers, but the labels of .* are classes"):
        run_inside("--mode=eval", f"--model_dir={run}", "--eval_dataset=digits", *SMALL)


def test_figures_of_a_regression_are_described():
    result = {
        "num_examples": 9, "data": "csv, test", "mean_absolute_error": 1.5, "r2": 0.75,
        "knn_mean_absolute_error": 2.0, "knn_r2": 0.5, "num_train_examples": 7,
        "intervals_95": {"r2": (0.5, 0.9)},
    }  # fmt: skip
    lines = evaluate.describe_evaluation(result).splitlines()
    assert (
        lines[1].strip() == "regression       mean absolute error 1.5, R2 0.7500 [0.5000, 0.9000]"
    )
    assert "k-NN mean absolute error 2, R2 0.5000, from 7 training" in lines[2]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--mode=finetune"], "Use --mode=linear, which fits a regression"),
        (["--mode=linear", "--linear_optimizer=lbfgs"], "linear_optimizer=lbfgs trains"),
        (["--mode=linear", "--linear_epochs=3"], "--linear_epochs .*would have no effect"),
        (["--mode=linear", "--class_balanced"], "class_balanced needs classes"),
        (["--mode=pretrain", "--nouse_labels", "--cross_entropy_weight=1"], "needs classes"),
        (["--mode=pretrain"], "--nouse_labels"),
    ],
)
def test_what_needs_classes_is_refused_before_training(tmp_path, arguments, message):
    (tmp_path / "labels.csv").write_text("filename,label\n0.jpg,1.5\n")
    (tmp_path / "0.jpg").write_bytes(encode())
    data = (f"--data_csv={tmp_path / 'labels.csv'}", "--label_type=real")
    with pytest.raises(flags.Error, match=message):
        run_inside(*arguments, *data, f"--model_dir={tmp_path / 'run'}")


def test_the_estimator_refuses_numbers_and_says_what_to_do():
    images, targets = np.zeros([4, 8, 8], np.uint8), np.array([0.5, 1.5, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"real numbers.*scikit-learn's to transform\(images\)"):
        SupConClassifier().fit(images, targets)

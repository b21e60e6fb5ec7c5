import numpy as np
import pytest

from supcon_tf.evaluation import intervals, metrics, multi_label, retrieval


def test_wilson_of_published_examples():
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), Table I, method 3."""
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = intervals.wilson_interval(successes, trials)
        assert found == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy_and_mirrors_failures(confidence):
    from scipy.stats import binomtest

    for successes, trials in [(0, 1), (3, 7), (7, 7), (950, 2_000)]:
        found = intervals.wilson_interval(successes, trials, confidence=confidence)
        expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
        other = intervals.wilson_interval(trials - successes, trials, confidence=confidence)
        assert other == pytest.approx((1 - found.high, 1 - found.low))
        assert 0.0 <= found.low <= successes / trials <= found.high <= 1.0


def test_wilson_takes_the_counts_of_numpy():
    found = intervals.wilson_interval(np.int32(60_000), np.int32(100_000))
    assert found == intervals.wilson_interval(60_000, 100_000)
    assert type(found.low) is float


def test_wilson_ends_solve_its_equation():
    """|p - q| = z sqrt(q (1 - q) / n) at both ends q."""
    for end in intervals.wilson_interval(30, 100):
        assert abs(0.3 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 100))


def test_bootstrap_of_a_mean_approaches_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4_000)
    low, high = intervals.bootstrap_interval(values, num_resamples=4_000)
    error = values.std() / np.sqrt(len(values))
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * error)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)


def test_vectorized_mean_and_any_statistic_agree():
    values = np.random.default_rng(0).random(200) < 0.7
    fast = intervals.bootstrap_interval(values)
    slow = intervals.bootstrap_interval(values, np.mean, seed=1)
    assert fast == pytest.approx(slow, abs=0.01)
    assert fast == pytest.approx(intervals.wilson_interval(values.sum(), 200), abs=0.01)


def test_bootstrap_is_seeded_and_does_not_depend_on_blocks(monkeypatch):
    values = np.random.default_rng(0).random(50)
    expected = intervals.bootstrap_interval(values, seed=3)
    assert intervals.bootstrap_interval(values, seed=3) == expected
    assert intervals.bootstrap_interval(values, seed=4) != expected
    monkeypatch.setattr(intervals, "_BLOCK_SIZE", 1_000)
    assert intervals.bootstrap_interval(values, seed=3) == expected


def test_arrays_of_one_example_are_resampled_together():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(100, 3)), rng.integers(3, size=100)
    logits[np.arange(100), labels] += 1
    found = intervals.bootstrap_interval(
        (logits, labels), metrics.top_k_accuracy, num_resamples=500
    )
    is_right = logits.argmax(axis=1) == labels
    assert found == pytest.approx(intervals.bootstrap_interval(is_right), abs=0.03)
    assert intervals.bootstrap_interval((labels, labels), lambda x, y: np.mean(x == y)) == (
        1.0,
        1.0,
    )


def coverage(make_interval, truth, *, rounds, make_values):
    hits = 0
    for seed in range(rounds):
        low, high = make_interval(make_values(np.random.default_rng(seed)))
        hits += low <= truth <= high
    return hits / rounds


def test_95_percent_intervals_cover_the_truth_in_95_percent_of_simulations():
    """600 rounds: the standard error of a coverage of 0.95 is 0.009."""
    found = coverage(
        lambda x: intervals.wilson_interval(int(x.sum()), len(x)),
        0.8,
        rounds=600,
        make_values=lambda rng: rng.random(100) < 0.8,
    )
    assert 0.92 < found < 0.98
    found = coverage(
        lambda x: intervals.bootstrap_interval(x, num_resamples=400),
        2.0,
        rounds=600,
        make_values=lambda rng: rng.exponential(2.0, size=100),
    )
    assert 0.90 < found < 0.98


def test_paired_difference_is_narrower_than_that_of_independent_runs():
    """Two runs that fail on the same hard examples: the difference is 10 of 1,000."""
    first = np.arange(1_000) < 700
    second = np.arange(1_000) < 710
    found = intervals.paired_bootstrap(first, second)
    assert found.difference == pytest.approx(0.01)
    assert 0.0 < found.low < found.difference < found.high < 0.02
    shuffled = np.random.default_rng(0).permutation(second)
    unpaired = intervals.paired_bootstrap(first, shuffled)
    assert unpaired.low < 0 < unpaired.high
    # McNemar: b and c discordant examples; n * difference has variance b + c - (b - c)^2 / n.
    error = np.sqrt(10 - 10**2 / 1_000) / 1_000
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.15)
    mirrored = intervals.paired_bootstrap(second, first)
    assert mirrored.difference == -found.difference


def test_inputs_that_mean_nothing_are_refused():
    for call, message in [
        (lambda: intervals.wilson_interval(3, 2), "0 to 2"),
        (lambda: intervals.wilson_interval(0, 0), "one trial"),
        (lambda: intervals.wilson_interval(1, 2, confidence=95), "confidence"),
        (lambda: intervals.bootstrap_interval(np.ones(0)), "lengths"),
        (lambda: intervals.bootstrap_interval((np.ones(2), np.ones(3)), np.dot), "lengths"),
        (lambda: intervals.bootstrap_interval(np.ones([2, 2])), "statistic"),
        (lambda: intervals.paired_bootstrap(np.ones(2), np.ones(3)), "same examples"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_figures_of_a_classifier_get_the_interval_of_their_kind():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, size=200)
    logits = rng.normal(size=(200, 7)) + 2 * np.eye(7)[labels]
    figures = metrics.classification_metrics(logits, labels)
    found = intervals.classification_intervals(logits, labels)
    assert set(found) == {"top_1", "top_5", "mean_per_class_accuracy", "negative_log_likelihood"}
    for name, (low, high) in found.items():
        assert low < figures[name] < high, name
    for k in (1, 5):
        hits = round(200 * figures[f"top_{k}"])
        assert found[f"top_{k}"] == intervals.wilson_interval(hits, 200)
    # The same by resampling whole sets of logits.
    for name, metric in (
        ("mean_per_class_accuracy", metrics.mean_per_class_accuracy),
        ("negative_log_likelihood", metrics.negative_log_likelihood),
    ):
        whole = intervals.bootstrap_interval((logits, labels), metric, num_resamples=100, seed=1)
        np.testing.assert_allclose(found[name], whole, atol=0.04)
    assert "top_5" not in intervals.classification_intervals(logits[:, :5], labels % 5)


def test_a_perfect_retrieval_has_an_interval_that_ends_at_one():
    labels = np.arange(30) % 3
    found = retrieval.retrieve(np.eye(3)[labels], labels)
    limits = intervals.retrieval_intervals(found)
    assert limits["precision_at_1"] == intervals.wilson_interval(30, 30)
    assert limits["r_precision"] == limits["map_at_r"] == (1.0, 1.0)


def test_intervals_of_several_labels_are_those_of_the_bootstrap(monkeypatch):
    """scikit-learn on every resample, with ties among the scores and a class that may be absent."""
    rng = np.random.default_rng(0)
    labels = rng.random([40, 3]) < [0.5, 0.2, 0.03]
    assert labels.any(axis=0).all()
    scores = np.round(rng.normal(size=[40, 3]) + labels, 1)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 60)
    found = intervals.multi_label_intervals(scores, labels)
    for name in ("mean_average_precision", "micro_f1", "macro_f1"):

        def figure(scores, labels, name=name):
            return multi_label.multi_label_metrics(scores, labels, threshold=0.5, from_logits=True)[
                name
            ]

        expected = intervals.bootstrap_interval((scores, labels), figure, num_resamples=60)
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)
        assert found[name].low < figure(scores, labels) < found[name].high


def test_intervals_of_several_labels_do_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.random([30, 2]) < 0.4
    scores = rng.normal(size=[30, 2])
    whole = intervals.multi_label_intervals(scores, labels)
    monkeypatch.setattr(intervals, "_BLOCK_SIZE", 100)
    assert intervals.multi_label_intervals(scores, labels) == whole

"""The examples of docs/evaluation.md run, and the names in its tables exist."""

import importlib
import re
from pathlib import Path

import keras
import numpy as np

from supcon_tf.evaluation import intervals, prediction_files

PAGE = (Path(__file__).parent.parent / "docs/evaluation.md").read_text(encoding="utf-8")


def test_every_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    for run in ("mine", "other"):
        (tmp_path / "runs" / run / "eval").mkdir(parents=True)
        predictions = prediction_files.Predictions(
            labels,
            rng.dirichlet(np.ones(10), size=60).astype(np.float16),
            np.array([f"{i}.png" for i in range(60)]),
            tuple("abcdefghij"),
        )
        path = tmp_path / "runs" / run / "eval/predictions.npz"
        path.write_bytes(prediction_files.to_npz(predictions))
    (tmp_path / "runs/mine/embed").mkdir()
    embeddings = rng.normal(size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "runs/mine/embed/embeddings.npz", embeddings=embeddings, labels=labels)
    (tmp_path / "runs/mine/pretrain").mkdir()
    pixels = keras.Input([8, 8, 3])
    encoder = keras.Model(pixels, keras.layers.Dense(4)(keras.layers.Flatten()(pixels)))
    encoder.save(tmp_path / "runs/mine/pretrain/encoder.keras")
    (tmp_path / "runs/mine/predict").mkdir()
    np.savez(
        tmp_path / "runs/mine/predict/training_embeddings.npz",
        embeddings=embeddings,
        labels=labels,
        names=np.arange(60).astype(str),
        class_names=np.array(list("abcdefghij")),
    )
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "docs/evaluation.md", "exec"), {})
    assert re.search(r"precision_at_1.*Interval\(.*Difference\(", capsys.readouterr().out, re.S)


def test_every_function_in_the_table_exists():
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (`[^|]+`) \|$", PAGE, re.M)
    assert len(rows) == 9
    for module, functions in rows:
        loaded = importlib.import_module(f"supcon_tf.evaluation.{module}")
        for name in re.findall(r"`(\w+)`", functions):
            assert callable(getattr(loaded, name)), name


def test_the_interval_in_the_text_is_right():
    low, high = intervals.wilson_interval(1_000, 2_000)
    assert round((high - low) / 2, 3) == 0.022
    assert "±0.022" in PAGE

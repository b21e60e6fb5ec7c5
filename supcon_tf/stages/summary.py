"""The last lines of a run: a table of its results and files, and what to do next."""

from __future__ import annotations

import shlex
import textwrap

import tensorflow as tf
from absl.flags import FlagValues
from tqdm import tqdm

from supcon_tf.cli.program import python_program
from supcon_tf.stages import advice, chance, figures
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage.run_paths import TENSORBOARD

SNIPPET = """\
import keras, numpy as np
from PIL import Image

encoder = keras.models.load_model("{encoder}")
image = Image.open("your_image.png").convert("RGB").resize(({side}, {side}))
pixels = np.array(image, np.float32)[None]  # values 0..255; do not divide by 255
embedding = encoder.predict(pixels)  # [1, {features}]"""
EXPORT_SNIPPET = """\
import tensorflow as tf

model = tf.saved_model.load("{path}")
outputs = model(images)  # uint8 [N, {side}, {side}, 3], values 0..255 -> {names}"""


# What each stage leaves for the user.
FILES = {
    "pretrain": ("encoder.keras", "linear_head.keras"),
    "linear": ("classifier.keras",),
    "finetune": ("encoder.keras", "classifier.keras"),
    "eval": ("eval.json", "confusion_matrix.csv", "predictions.npz"),
    "predict": ("predictions.csv", "predictions.jsonl"),
    "embed": ("embeddings.npz",),
    "export": ("saved_model",),
    "report": ("index.html",),
    "preview": ("preview.png",),
    "inspect": ("issues.csv",),
    "robustness": ("robustness.json", "severity.png"),
}


def create(
    flags: FlagValues,
    results: dict[str, dict],
    arguments: list[str],
    seconds: dict[str, float] | None = None,
) -> str:
    """Returns the closing text of a run.

    Args:
        flags: The parsed flags.
        results: What each stage of this command returned.
        arguments: The command line, to build the next command from.
        seconds: How long each stage took.
    """
    run = RunDirectory.of(flags)
    program = [python_program(), "-m", "supcon_tf.main"]
    parts = [*chance.chance_warning(results), *advice.advise(flags, results, program)]
    if "pretrain" in results:
        snippet = SNIPPET.format(
            encoder=run.encoder,
            side=results["pretrain"]["image_size"],
            features=results["pretrain"]["num_features"],
        )
        parts += ["", "Use the encoder:", "", textwrap.indent(snippet, "    ")]
    if "export" in results:
        export = results["export"]
        snippet = EXPORT_SNIPPET.format(
            path=export["path"], side=export["image_size"], names=", ".join(export["outputs"])
        )
        parts += ["", "Use the exported model:", "", textwrap.indent(snippet, "    ")]
    parts += ["", *_table_of_stages(run, results, seconds or {}), ""]
    if any(tf.io.gfile.exists(run.file(stage, TENSORBOARD)) for stage in results):
        parts.append(f"Curves and images: {_tensorboard(run.path)}")
    parts.append(f"Next: {_next_command(flags, results, arguments)}")
    return "\n".join(parts)


def _table_of_stages(run, results, seconds):
    """Returns the lines of a table: a row for each stage, and one for each further file."""
    rows = [("stage", "result", "time", f"files in {run.path}")]
    for stage, result in results.items():
        paths = [f"{stage}/{name}" for name in FILES[stage]]
        found = [path for path in paths if tf.io.gfile.exists(run.file(path))]
        taken = result.get("seconds", seconds.get(stage))
        time = "" if taken is None else tqdm.format_interval(taken)
        rows.append((stage, _figures(stage, result), time, found[0] if found else ""))
        rows += [("", "", "", path) for path in found[1:]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    rows.insert(1, tuple("-" * width for width in (*widths, max(len(row[3]) for row in rows))))
    return [
        f"{stage:<{widths[0]}}  {result:<{widths[1]}}  {time:>{widths[2]}}  {path}".rstrip()
        for stage, result, time, path in rows
    ]


def _figures(stage, result):
    """Returns the main figures of a stage in a few words; "" of one that has none."""
    if stage == "pretrain":
        parts = [f"{result['steps']:,} steps"]
        for name, text in (
            ("knn_accuracy", "k-NN accuracy"), ("knn_mean_average_precision", "k-NN mAP"),
            ("knn_r2", "k-NN R2"),
        ):  # fmt: skip
            parts += [f"{text} {result[name]:.4f}"] if name in result else []
        return ", ".join(parts)
    if stage in ("linear", "finetune"):
        is_ridge = "train_r2" in result  # It is solved without steps.
        steps = "" if is_ridge else f"{result['steps']:,} steps, "
        return f"{steps}{figures.describe_classifier(result)}"
    if stage == "eval":
        return f"{figures.describe_classifier(result)} on {result['num_examples']:,} images"
    if stage == "inspect":
        return f"{len(result['issues']):,} issues"
    if stage == "robustness":
        return f"mean accuracy on corrupted images {result['mean_corruption_accuracy']:.4f}"
    count = result.get("num_examples", result.get("examples"))
    return "" if count is None else f"{count:,} images"


def _without_mode(arguments):
    kept, skip = [], False
    for argument in arguments:
        is_mode = argument in ("--mode", "-mode")
        if not (skip or is_mode or argument.startswith(("--mode=", "-mode="))):
            kept.append(argument)
        skip = is_mode
    return kept


def _next_command(flags, results, arguments):
    program = [python_program(), "-m", "supcon_tf.main"]
    if "inspect" in results:
        return results["inspect"]["next_command"]
    stages = ["pretrain", "linear", "eval"]
    done = [stage for stage in stages if stage in results]
    following = stages[stages.index(done[-1]) + 1 :] if done else stages
    if not done and {"predict", "embed", "export", "report", "robustness"} & set(
        results
    ):  # They need a trained encoder.
        following = []
    if following:
        mode = [] if following == stages else [f"--mode={','.join(following)}"]
        return shlex.join([*program, *mode, *_without_mode(arguments)])
    if flags.dataset not in ("folder", "csv"):
        return (
            f"{shlex.join(program)} --dataset=folder --data_dir=YOUR_IMAGES  "
            "# one folder per class, see docs/own_data.md"
        )
    model_dir = RunDirectory.of(flags).path
    if "predict" not in results:
        stage = ["--mode=predict", "--predict_dir=NEW_IMAGES", f"--model_dir={model_dir}"]
        return f"{shlex.join([*program, *stage])}  # a folder of images without labels"
    return _tensorboard(model_dir)


def _tensorboard(model_dir):
    return shlex.join([python_program(), "-m", "tensorboard.main", f"--logdir={model_dir}"])

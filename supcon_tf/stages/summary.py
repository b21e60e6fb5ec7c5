"""The last lines of a run: its results, where its files are, and what to do next."""

from __future__ import annotations

import shlex
import textwrap

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.cli.program import python_program
from supcon_tf.stages import advice, chance, figures
from supcon_tf.stages.run_directory import RunDirectory

SNIPPET = """\
import keras, numpy as np
from PIL import Image

encoder = keras.models.load_model("{encoder}")
image = Image.open("your_image.png").convert("RGB").resize(({side}, {side}))
pixels = np.array(image, np.float32)[None]  # values 0..255; do not divide by 255
embedding = encoder.predict(pixels)  # [1, {features}]"""
EXPORT_SNIPPET = """\
import tensorflow as tf
from absl.flags import FlagValues

model = tf.saved_model.load("{path}")
outputs = model(images)  # uint8 [N, {side}, {side}, 3], values 0..255 -> {names}"""


def create(flags: FlagValues, results: dict[str, dict], arguments: list[str]) -> str:
    """Returns the closing text of a run.

    Args:
        flags: The parsed flags.
        results: What each stage of this command returned.
        arguments: The command line, to build the next command from.
    """
    run = RunDirectory.of(flags)
    model_dir = run.path
    parts = [
        "",
        *_figures(results),
        *chance.chance_warning(results),
        f"The files of this run are in {model_dir}/",
    ]
    for name, what in (
        ("pretrain/encoder.keras", "the encoder: images (0..255) to features"),
        ("pretrain/linear_head.keras", "the classifier of pretraining: features to logits"),
        ("finetune/encoder.keras", "the fine-tuned encoder"),
        ("finetune/classifier.keras", "the fine-tuned classifier: images (0..255) to logits"),
        ("linear/classifier.keras", "the classifier: images (0..255) to logits"),
        ("eval/eval.json", "all metrics of the evaluation"),
        ("eval/confusion_matrix.csv", "how often each class was predicted as each other"),
        ("eval/predictions.npz", "label and class probabilities of every test image"),
        ("report/index.html", "the report: open it in a browser"),
        ("predict/predictions.csv", "class and similar training images of each new image"),
        ("embed/embeddings.npz", "embeddings, labels, predictions and file names"),
        ("export/saved_model", "uint8 images to embeddings, projection and logits"),
        ("preview/preview.png", "training images and their views"),
        ("inspect/issues.csv", "what may be wrong with the data"),
        ("robustness/robustness.json", "accuracy and calibration on corrupted images"),
        ("robustness/severity.png", "both by severity, as a picture"),
        ("pretrain/tensorboard", _tensorboard(model_dir)),
    ):
        path = run.file(name)
        if tf.io.gfile.exists(path):
            parts.append(f"  {path:<{len(model_dir) + 26}} {what}")
    parts += advice.advise(flags, results, [python_program(), "-m", "supcon_tf.main"])
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
    parts += ["", "Next:", "", f"    {_next_command(flags, results, arguments)}"]
    return "\n".join(parts)


def _figures(results):
    lines = []
    if "pretrain" in results:
        pretrain = results["pretrain"]
        text = f"pretrain: {pretrain['steps']:,} steps in {pretrain['seconds']:.0f} s"
        if "knn_accuracy" in pretrain:
            text += f", k-NN accuracy {pretrain['knn_accuracy']:.4f}"
        if "knn_mean_average_precision" in pretrain:
            text += f", k-NN mAP {pretrain['knn_mean_average_precision']:.4f}"
        if "knn_r2" in pretrain:
            text += f", k-NN R2 {pretrain['knn_r2']:.4f}"
        lines.append(text)
    for stage in ("linear", "finetune"):
        if stage in results:
            result = results[stage]
            lines.append(
                f"{stage + ':':<9} {_duration(result)}, {figures.describe_classifier(result)}"
            )
    if "eval" in results:
        evaluation = results["eval"]
        what = figures.describe_classifier(evaluation)
        lines.append(f"eval:     {what} on {evaluation['num_examples']:,} images")
    return lines


def _duration(result):
    steps = "" if "train_r2" in result else f"{result['steps']:,} steps in "  # Ridge has no steps.
    return f"{steps}{result['seconds']:.0f} s"


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

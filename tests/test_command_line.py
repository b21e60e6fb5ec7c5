"""The command line: what it accepts and rejects, what its help shows, what its defaults are."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from supcon_tf import strategies
from supcon_tf.augment import policies
from supcon_tf.cli import (
    command_line,
    declare,
    flag_rules,
    flag_suggestions,
    flags_page,
    help_pages,
    training_flags,
    view_rules,
)
from supcon_tf.cli.flag_types import Text
from supcon_tf.cli.parse import parse_command_line
from supcon_tf.data import crops, pipeline, sources, view_batches
from supcon_tf.losses import momentum_queue, supcon
from supcon_tf.losses import options as loss_options
from supcon_tf.models import applications, contrastive, resnet
from supcon_tf.stages import identity
from supcon_tf.training import loop, optimizers, steps

ROOT = Path(__file__).parent.parent

if "mode" not in flags.FLAGS:
    command_line.define_flags()


def parse(*arguments):
    """The value of every flag after parsing, by name."""
    with flagsaver.flagsaver():
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        return {name: flags.FLAGS[name].value for name in command_line.own_flags()}


def rejection(capsys, *arguments):
    """What the command prints on stderr for arguments that it rejects."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        parse_command_line(["supcon_tf", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


# Runs each command line of a JSON list in one interpreter, as the command does, and prints one
# JSON object per command line.
RUN_ALL = """
import contextlib, io, json, sys
from absl import app, flags
from absl.testing import flagsaver
from supcon_tf import main
from supcon_tf.cli import command_line, parse

command_line.define_flags()
app.define_help_flags()
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["supcon_tf", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(parse.parse_command_line(sys.argv))
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("tensorflow", "keras", "numpy") if name in sys.modules]
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}))
"""


def run_all(command_lines, folder, **environment):
    """The exit status, the output and the heavy modules loaded after each command line."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(command_lines)],
        cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(command_lines)
    return results


@pytest.fixture(scope="module")
def help_pages_of_the_command(tmp_path_factory):
    return run_all([["--help"], ["--helpfull"]], tmp_path_factory.mktemp("help"), COLUMNS="80")


def test_help_shows_the_common_flags_and_imports_no_tensorflow(help_pages_of_the_command):
    page, _ = help_pages_of_the_command
    assert (page["code"], page["err"], page["heavy"]) == (0, "", [])
    lines = page["out"].splitlines()
    assert lines[0].startswith("Usage:") and lines[1].startswith("Example:")
    assert len(lines) <= 112 and max(map(len, lines[2:])) <= 80
    for stage in command_line.STAGES:
        assert re.search(rf"^  {stage} ", page["out"], re.M)
    assert "--temperature (default: 0.1; paper: 0.1 (Section 4.4))" in page["out"]
    shown = set(re.findall(r"^  --(\w+)", page["out"], re.M))
    assert shown == {flag.name for flag in command_line.ALL_FLAGS if flag.common}
    assert lines[-1] == f"--helpfull lists all {len(command_line.own_flags())} flags."


def test_helpfull_shows_every_flag_with_its_type_default_and_stages(help_pages_of_the_command):
    _, page = help_pages_of_the_command
    assert (page["code"], page["err"], page["heavy"]) == (0, "", [])
    assert max(map(len, page["out"].splitlines()[2:])) <= 80
    sections = re.split(r"^  --(?:\[no\])?(\w+)$", page["out"], flags=re.M)
    by_name = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert sorted(by_name) == sorted(command_line.own_flags())
    for name, text in by_name.items():
        assert "Type: " in text and "Default: " in text and "Stages: " in text, name


def test_help_fits_the_width_of_the_terminal():
    for columns in (40, 60, 100):
        for page in (help_pages.short_help(columns), help_pages.full_help(columns)):
            for line in page.splitlines()[2:]:
                assert len(line) <= columns or len(line.split()) <= 2, line


def test_the_page_of_the_flags_is_made_from_the_declarations():
    page = (ROOT / "docs" / "flags.md").read_text()
    assert page == flags_page.create_page(), f"Run: {flags_page.COMMAND}"


def test_a_flag_is_declared_once_with_stages_and_a_group_that_exist():
    def define(name, stages=("pretrain",), group="Loss"):
        declare.define(name, Text(), default=None, stages=stages, group=group, help="A flag.")

    with pytest.raises(ValueError, match="temperature is declared twice"):
        define("temperature")
    with pytest.raises(ValueError, match="'pretrian' is not one of"):
        define("a_new_flag", stages=("pretrian",))
    with pytest.raises(ValueError, match="group='Los' is not one of"):
        define("a_new_flag", group="Los")
    assert "a_new_flag" not in [flag.name for flag in declare.declared_flags()]


def test_every_help_text_is_a_sentence_and_names_only_flags_that_exist():
    known = {*command_line.own_flags(), "verbosity", "flagfile"}
    for flag in command_line.ALL_FLAGS:
        assert flag.help[0].isupper() or flag.help.split()[0].rstrip(",:") in ("float32",), flag
        assert flag.help.endswith("."), flag.name
        for name in re.findall(r"--(\w+)", flag.help):
            assert name in known or name.removeprefix("no") in known, (flag.name, name)


def test_importing_the_package_is_light():
    code = (
        "import sys, supcon_tf\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
        "from supcon_tf.cli import tensorflow_start\n"
        "tensorflow_start.import_quietly()\n"
        "print('STARTED', sorted(heavy & set(sys.modules)))\n"
        "names = [getattr(supcon_tf, name) for name in dir(supcon_tf)]\n"
        "import matplotlib.pyplot, sklearn.base\n"
        "print('NAMES', len(names), 'tensorflow_datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert "HEAVY []" in done.stdout, done.stderr
    assert "STARTED ['keras', 'tensorflow']" in done.stdout, done.stderr
    assert re.search(r"NAMES \d+ False", done.stdout), done.stderr


BAD_FLAGS = [
    (["--mode=linear,eval", "--time_budget_minutes=5"], "which --mode=linear,eval does not run"),
    (["--mode=pretrian"], "'pretrian' is not a stage.*Did you mean pretrain"),
    (["--mode="], "names no stage"),
    (["--mode=eval,eval"], "twice"),
    (["--temperature=0"], "temperature.*from 0.0001 to"),
    (["--temperature=-1"], "temperature.*from 0.0001 to"),
    (["--positives_cap=3"], "multiple of num_views=2"),
    (["--positives_cap=2", "--num_views=4"], "multiple of num_views=4"),
    (["batch_size=64"], "Unexpected argument 'batch_size=64'"),
    (["--batchsize=64"], "no flag --batchsize. Did you mean --batch_size"),
    (["--batch_size=0"], "batch_size"),
    (["--recipe=nothing"], "no recipe 'nothing'.*--recipe.* digits"),
    (["--encoder=resnet_v1", "--resnet_depth=51"], "resnet_depth=51: expected one of 18, 34"),
    (["--encoder=resnet50"], "encoder=resnet50.*tiny, resnet_v1, resnext, or keras.applications"),
    (
        [
            "--encoder=keras.applications.VGG16",
            "--whitening=given",
            "--whitening_mean=0,0,0",
            "--whitening_std=1,1,1",
        ],
        "whitening=given .*--encoder=keras.applications.VGG16",
    ),
    (["--linear_optimizer=lbfgs", "--linear_epochs=20"], "linear_optimizer=lbfgs.*--linear_epochs"),
    (["--linear_optimizer=lbfgs", "--label_smoothing=0"], "--linear_optimizer=momentum"),
    (["--recipe=digits", "--linear_optimizer=lbfgs"], "--linear_base_learning_rate.*recipe"),
    (["--embed_split=train", "--embed_dir=images"], "embed_split .*embed_dir"),
    (
        ["--encoder=keras.applications.VGG16", "--first_conv_stride=2"],
        "first_conv_stride=2 .*--encoder=keras.applications.VGG16",
    ),
    (["--encoder=resnext", "--resnet_depth=34"], "34 is not a valid resnext depth"),
    (["--crop_area_range=0.5"], "crop_area_range=0.5: expected 2 numbers"),
    (["--linear_crop_area_range=0.05,0.1"], "linear_crop_area_range=0.05,0.1.*Raise the upper"),
    (["--augmentation_type=randaugment"], "augmentation_type=randaugment needs .*_magnitude=9"),
    (["--finetune_augmentation_type=randaugment"], "finetune_augmentation_type=randaugment needs"),
    (["--linear_augmentation_type=randaugment"], "linear_augmentation_type=randaugment needs"),
    (["--linear_warmup_start=0.1"], "linear_warmup_start=0.1 .*--linear_warmup_epochs"),
    (["--crop_area_range=0.9,0.5"], "none smaller than the one before"),
    (["--crop_area_range=a,b"], "crop_area_range=a,b: expected 2 numbers"),
    (["--projection_head_layers=128,x"], "each a whole number from 1 to"),
    (["--pretrain_warmup_epochs=5", "--pretrain_epochs=4"], "longer than the stage"),
    (["--logical_cpus=4"], "logical_cpus=4 .*--strategy=mirrored"),
    (["--strategy=tpu"], "strategy=tpu .*--tpu_name=local"),
    (["--tpu_name=x", "--strategy=mirrored"], "tpu_name=x .*--strategy=mirrored.*--strategy=tpu"),
    (["--tpu_zone=us-central1-a"], "tpu_zone=us-central1-a .*--tpu_name"),
    (["--gcp_project=mine"], "gcp_project=mine .*--tpu_name"),
    (["--tpu_name=x", "--jit_compile"], "jit_compile .*TPU.*Leave it out"),
    (
        ["--tpu_name=x", "--precision=mixed_float16"],
        "mixed_float16 .*TPU.*--precision=mixed_bfloat16",
    ),
    (["--deterministic", "--data_service=grpc://x:1"], "batches come in any order"),
    (["--whitening=given"], "needs --whitening_mean: three numbers"),
    (
        ["--whitening=given", "--whitening_mean=0,0,0", "--whitening_std=1,0,1"],
        "each a number from 0.0001 to 1",
    ),
    (["--whitening_mean=0,0,0"], "whitening_mean .*--whitening=given"),
    (["--skip_broken_images"], "skip_broken_images .*--dataset=digits.*--dataset=folder"),
    (["--data_dir="], "data_dir=.*is empty"),
    (["--dataset=digits", "--data_dir=mine"], "data_dir=mine .*--dataset=digits.*--dataset=folder"),
    (
        ["--data_dir=gs://bucket/mine"],
        "data_dir=gs://bucket/mine .*--dataset=digits.*--dataset=folder",
    ),
    (["--model_dir="], "model_dir=.*is empty"),
    (["--data_service=localhost:5000"], "must look like grpc://host:port"),
    (["--microbatch_size=16"], "microbatch_size=16 .*--nouse_global_batch_norm"),
    (["--nouse_labels", "--num_views=1"], "leaves no positives.*--num_views=2"),
    (["--loss=cross_entropy"], "loss=cross_entropy .*num_views=2.*--num_views=1"),
    (["--loss=triplet", "--temperature=0.5"], "^ERROR: --temperature=0.5 .*--loss=triplet"),
    (["--loss=npairs", "--nouse_labels"], "^ERROR: --nouse_labels .*--loss=npairs"),
    (
        ["--loss=cross_entropy", "--num_views=1", "--projection_head_layers=2048,128"],
        "projection_head_layers=2048,128 .*--loss=cross_entropy",
    ),
    (["--encoder_momentum=0.9"], "encoder_momentum=0.9 .*--queue_size"),
    (["--queue_size=64", "--encoder_momentum=1"], "below 1"),
    (["--queue_size=64", "--positives_cap=2"], "positives_cap=2 .*--queue_size"),
    (["--queue_size=64", "--loss=triplet"], "loss=triplet .*--queue_size"),
    (
        ["--queue_size=64", "--num_views=1", "--contrast_mode=one_view"],
        "one_view .*num_views=1.*--num_views=2",
    ),
    (
        ["--stop_gradient_before_classifier"],
        "stop_gradient_before_classifier .*--cross_entropy_weight",
    ),
    (["--pretrain_label_smoothing=0.1"], "pretrain_label_smoothing=0.1 .*--label_smoothing"),
]


@pytest.mark.parametrize("arguments,message", BAD_FLAGS, ids=[" ".join(a) for a, _ in BAD_FLAGS])
def test_bad_flags_are_refused_with_one_message(arguments, message, capsys):
    printed = rejection(capsys, *arguments)
    assert re.search(message, printed, re.DOTALL), printed
    assert printed.startswith("ERROR: ") and len(printed.splitlines()) <= 3


def test_the_command_itself_refuses_an_argument_without_dashes_in_one_message(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "supcon_tf.main", "batch_size=64"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "Unexpected argument 'batch_size=64'" in done.stderr
    assert len(done.stderr.splitlines()) == 2


# Each needs no TensorFlow, whose start takes many seconds.
BAD_PATHS = [
    (["--dataset=folder", "--data_dir=missing"], "data_dir=missing is not a folder"),
    (["--dataset=folder", "--data_dir=one_class"], "one_class/train .*1 class.*at least two"),
    (
        ["--dataset=folder", "--data_dir=test_alone"],
        "test_alone/train is missing; test_alone holds test",
    ),
    (["--data_dir=empty_class"], "empty_class/train/dog is empty"),
    (["--dataset=cifar10", "--data_dir=a_file"], "data_dir=a_file is not a folder"),
    (["--mode=embed", "--embed_dir=missing"], "embed_dir=missing is not a folder"),
    (["--mode=embed", "--embed_dir=no_files"], "embed_dir=no_files .*images"),
    (["--reference_ckpt=missing"], "reference_ckpt=missing does not exist"),
    (["--reference_ckpt=no_files"], "reference_ckpt=no_files .*run"),
    (["--model_dir=a_file/run"], "a_file/run.*a_file is a file.*--model_dir="),
    (["--model_dir=/proc/run"], "/proc/run.*not writable.*--model_dir="),
    (["--mode=eval"], "--mode=eval .*runs/digits .*--mode=pretrain"),
    (["--recipe=nothing"], "no recipe 'nothing'"),
    (["--flagfile=missing"], "Unable to open flagfile.*missing"),
    (["--flagfile=a_picture"], "--flagfile is not UTF-8 text"),
    (["--epochs=3"], "no flag --epochs.*--pretrain_epochs or --linear_epochs or --finetune_epochs"),
    (["--lr=3"], "no flag --lr.*--pretrain_base_learning_rate or --linear_base_learning_rate"),
    (["--learning_rate=3"], "--pretrain_base_learning_rate or --linear_base_learning_rate"),
    (["--nojit_compile=3"], "nojit_compile=3 does not take"),
]


@pytest.fixture(scope="module")
def bad_paths(tmp_path_factory):
    """The results of all `BAD_PATHS`, run in one interpreter, and the folder that they ran in."""
    root = tmp_path_factory.mktemp("bad_paths")
    for name in (
        "one_class/train/cat", "one_class/test", "test_alone/test/cat", "test_alone/test/dog",
        "empty_class/train/cat", "empty_class/train/dog", "empty_class/test", "no_files/inside",
    ):  # fmt: skip
        (root / name).mkdir(parents=True)
    (root / "empty_class/train/cat/0.png").touch()
    (root / "a_file").touch()
    (root / "a_picture").write_bytes(b"\xd0\xff")
    return run_all([arguments for arguments, _ in BAD_PATHS], root), root


@pytest.mark.parametrize("index", range(len(BAD_PATHS)), ids=[" ".join(a) for a, _ in BAD_PATHS])
def test_bad_paths_and_names_are_refused_before_tensorflow_starts(index, bad_paths):
    (_, message), (results, root) = BAD_PATHS[index], bad_paths
    result = results[index]
    assert result["code"] in (1, 2)
    assert re.search(message, result["err"], re.DOTALL), result["err"]
    assert result["err"].strip().startswith("ERROR: ") and "Traceback" not in result["err"]
    assert result["heavy"] == []
    assert not (root / "runs").exists()


# Every flag that is an argument of a function has that function's default. What differs on
# purpose is what the digits need, and is listed with its reason in DIGITS_DEFAULTS.
PAIRS = {
    "temperature": supcon.supcon_loss,
    "contrast_mode": supcon.supcon_loss,
    "summation_location": supcon.supcon_loss,
    "denominator_mode": supcon.supcon_loss,
    "positives_cap": supcon.supcon_loss,
    "scale_by_temperature": supcon.supcon_loss,
    "epsilon": supcon.supcon_loss,
    "pair_weights": supcon.supcon_loss,
    "spread_weight": supcon.supcon_loss,
    "denominator_weighting": supcon.supcon_loss,
    "loss_cache_mb": (supcon.supcon_loss, "cache_mb"),
    "use_labels": supcon.SupConLoss.__init__,
    "num_views": pipeline.create_train_batches,
    "class_balanced": pipeline.create_train_batches,
    "blur_probability": pipeline.create_train_batches,
    "crop_compat": pipeline.create_train_batches,
    "fast_decode": pipeline.create_train_batches,
    "data_service": pipeline.create_train_batches,
    "skip_broken_images": sources.DataOptions,
    "data_csv": sources.DataOptions,
    "label_type": sources.DataOptions,
    "validation_split": sources.DataOptions,
    "train_split": sources.DataOptions,
    "test_split": sources.DataOptions,
    "eval_crop_method": (pipeline.create_eval_batches, "crop_method"),
    "crop_padding": pipeline.create_eval_batches,
    "augmentation_type": policies.create_policy,
    "augmentation_magnitude": (policies.create_policy, "magnitude"),
    "augmentation_compat": (policies.create_policy, "compat"),
    "randaugment_num_layers": (policies.create_policy, "num_layers"),
    "stacked_randaugment_magnitude": (policies.create_policy, "stacked_magnitude"),
    "warp_probability": policies.create_policy,
    "encoder_momentum": (momentum_queue.MomentumQueue.__init__, "momentum"),
    "microbatch_size": steps.ContrastiveStep.__init__,
    "normalize_embedding": contrastive.ContrastiveModel.__init__,
    "projection_head_use_batch_norm": (contrastive.ProjectionHead.__init__, "use_batch_norm"),
    "projection_head_use_batch_norm_beta": (
        contrastive.ProjectionHead.__init__,
        "use_batch_norm_beta",
    ),
    "use_global_batch_norm": resnet.create_resnet,
    "resnet_depth": (resnet.create_resnet, "depth"),
    "resnet_width": (resnet.create_resnet, "width"),
    "zero_initialize_classifier": (contrastive.create_linear_head, "zero_initialize"),
    "strategy": (strategies.create_strategy, "name"),
    "encoder": (contrastive.create_encoder, "architecture"),
    "label_smoothing": steps.ClassifierStep.__init__,
    "pretrain_label_smoothing": (steps.ClassifierStep.__init__, "label_smoothing"),
    "stop_gradient_before_classifier": (steps.ClassificationTerm.__init__, "stop_gradient"),
    "use_bias_weight_decay": (optimizers.undecayed_variables, "decay_biases"),
    "linear_rmsprop_epsilon": (optimizers.create_optimizer, "rmsprop_epsilon"),
    "tpu_name": strategies.create_strategy,
    "tpu_zone": strategies.create_strategy,
    "gcp_project": strategies.create_strategy,
    "jit_compile": loop.train,
    "pretrain_weight_decay": (optimizers.create_optimizer, "weight_decay"),
    "finetune_weight_decay": (optimizers.create_optimizer, "weight_decay"),
    "linear_weight_decay": (optimizers.create_optimizer, "weight_decay"),
    "pretrain_learning_rate_decay": (optimizers.WarmUpThenDecay.__init__, "decay"),
    "linear_learning_rate_decay": (optimizers.WarmUpThenDecay.__init__, "decay"),
    "pretrain_warmup_start": (optimizers.WarmUpThenDecay.__init__, "warmup_start"),
    "pretrain_decay_rate": (optimizers.WarmUpThenDecay.__init__, "decay_rate"),
    "linear_decay_rate": (optimizers.WarmUpThenDecay.__init__, "decay_rate"),
    "pretrain_epochs_per_decay": (optimizers.WarmUpThenDecay.__init__, "epochs_per_decay"),
    "linear_epochs_per_decay": (optimizers.WarmUpThenDecay.__init__, "epochs_per_decay"),
}


VIEW_FLAGS = (
    "augmentation_type", "batch_size", "image_size", "seed", "num_views", "crop_area_range",
    "horizontal_flip", "blur_probability",
)  # fmt: skip


def test_views_of_arrays_have_the_defaults_of_the_command():
    signature = inspect.signature(view_batches.create_view_batches)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    values = {name: value for name, value in parse().items() if name in VIEW_FLAGS}
    assert defaults["policy"] == values.pop("augmentation_type")
    low, high = map(float, values.pop("crop_area_range"))
    assert defaults["crop_area_range"] == (low, high)
    assert values.pop("horizontal_flip") == "auto" and defaults["horizontal_flip"]  # Not digits.
    assert values == {name: defaults[name] for name in values}


def test_every_word_of_another_program_has_a_flag_here():
    known = command_line.own_flags()
    for word in flag_suggestions.OTHER_WORDS:
        suggested = flag_suggestions.suggest_flags(word, known)
        assert suggested and set(suggested) <= set(known), word


@pytest.mark.parametrize("name", PAIRS)
def test_a_flag_has_the_default_of_its_function(name):
    pair = PAIRS[name]
    function, argument = pair if isinstance(pair, tuple) else (pair, name)
    assert parse()[name] == inspect.signature(function).parameters[argument].default


@pytest.mark.parametrize(
    "name,choices",
    [
        ("contrast_mode", loss_options.CONTRAST_MODES),
        ("summation_location", loss_options.SUMMATION_LOCATIONS),
        ("denominator_mode", loss_options.DENOMINATOR_MODES),
        ("strategy", strategies.STRATEGIES),
        ("eval_crop_method", crops.EVAL_CROP_METHODS),
        ("crop_compat", crops.CROP_COMPATS),
        ("augmentation_type", policies.AUGMENTATION_TYPES),
        ("linear_augmentation_type", policies.AUGMENTATION_TYPES),
        ("pretrain_optimizer", optimizers.OPTIMIZERS),
        ("linear_optimizer", ("auto", "lbfgs", *optimizers.OPTIMIZERS)),
        ("pretrain_learning_rate_decay", optimizers.SCHEDULES),
        ("linear_learning_rate_decay", optimizers.SCHEDULES),
    ],
)
def test_a_flag_offers_what_its_function_knows(name, choices):
    assert sorted(flags.FLAGS[name].parser.enum_values) == sorted(choices)


def test_the_rules_know_the_encoders_of_the_functions():
    assert sorted(flag_rules.ENCODERS) == sorted(resnet.ARCHITECTURES)
    assert flag_rules.APPLICATIONS == applications.PREFIX


def test_the_rules_know_the_smallest_crop_of_the_functions():
    assert crops.REFERENCE_MIN_AREA == view_rules.SMALLEST_REFERENCE_CROP


def test_every_flag_belongs_to_a_stage_or_to_the_run():
    run_flags = {flag.name for flag in command_line.ALL_FLAGS if not flag.stages}
    assert run_flags == {
        "mode", "recipe", "model_dir", "override_flags", "time_budget_minutes",
    }  # fmt: skip
    staged = set().union(*command_line.STAGE_FLAGS.values())
    assert set(command_line.own_flags()) == staged | run_flags
    assert staged >= command_line.FREE_FLAGS
    assert (
        command_line.FREE_FLAGS | run_flags | {"data_dir", "data_csv", "exclude"}
        == command_line.CHANGEABLE_FLAGS
    )


@pytest.mark.parametrize("stage", ["pretrain", "linear", "finetune"])
def test_a_training_stage_has_every_flag_of_a_training(stage):
    """`training_flags.of_stage` returns the stage's own values."""
    values = parse(f"--{stage}_epochs=7", f"--{stage}_decay_boundary_epochs=1,2")
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", f"--{stage}_epochs=7", f"--{stage}_decay_boundary_epochs=1,2"])
        of_stage = dataclasses.asdict(training_flags.of_stage(flags.FLAGS, stage))
    assert of_stage == {field: values[f"{stage}_{field}"] for field in of_stage}
    assert (of_stage["epochs"], of_stage["decay_boundary_epochs"]) == (7, (1, 2))


def test_the_flags_that_an_older_version_recorded_are_read():
    """Their order in `stage.flags` does not matter."""
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", "--temperature=0.2", "--nouse_labels", "--crop_area_range=0.3,1"])
        lines = list(command_line.stage_flags(flags.FLAGS, "pretrain").values())
        saved = [identity.Identity.from_record({"flags": each}) for each in (lines, lines[::-1])]
        assert saved[0].key == saved[1].key
        assert saved[1].changed_flags(flags.FLAGS, "pretrain") == []
    assert parse(*lines[::-1])["temperature"] == 0.2


def test_the_digits_recipe_equals_the_defaults_and_writes_them_out():
    """But for the linear stage, which a recipe trains in steps, as the paper does."""
    recipe = parse("--recipe=digits")
    assert recipe["linear_optimizer"] == "momentum"
    assert {**recipe, "recipe": None, "linear_optimizer": "auto"} == parse()
    text = (ROOT / "flags" / "digits.flags").read_text()
    for name in set(command_line.STAGE_FLAGS["pretrain"] + command_line.STAGE_FLAGS["linear"]):
        if parse()[name] is not None and name not in command_line.FREE_FLAGS:
            assert re.search(rf"^--(no)?{name}\b", text, re.MULTILINE), name


def test_the_flags_of_a_fitted_linear_stage_are_those_that_decide_it():
    def names(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
            return command_line.stage_flag_names(flags.FLAGS, "linear")

    fitted, trained = command_line.FITTED_LINEAR_FLAGS, command_line.STAGE_FLAGS["linear"]
    assert set(fitted) <= set(trained)
    assert not set(fitted) & set(flag_rules.LINEAR_TRAINING_FLAGS)
    assert names() == names("--linear_optimizer=lbfgs") == fitted
    assert names("--batch_size=32", "--finetune_epochs=3", "--class_balanced") == fitted
    assert names("--linear_optimizer=momentum") == names("--recipe=digits") == trained
    for name in flag_rules.LINEAR_TRAINING_FLAGS:  # Also with their default value.
        given = f"--{name}={flags.FLAGS[name].default_unparsed}"
        if isinstance(flags.FLAGS[name].default, bool):
            given = f"--no{name}"
        assert names(given.replace("[", "").replace("]", "")) == trained, given


def test_model_dir_defaults_to_recipe_then_dataset():
    def model_dir(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
            return command_line.model_dir(flags.FLAGS)

    assert model_dir() == "runs/digits"
    assert model_dir("--dataset=cifar10:3.*.*") == "runs/cifar10_3.*.*"
    assert model_dir("--recipe=supcon_cifar10_resnet50") == "runs/supcon_cifar10_resnet50"
    assert model_dir("--recipe=digits", "--model_dir=x") == "x"

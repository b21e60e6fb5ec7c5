"""What no run can use is refused by the flag itself, whatever the flag."""

import math
import re
import shutil
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.stage_probe import observe
from helpers.trained_folder import write_trained
from PIL import Image

from supcon_tf.cli import command_line, flag_types
from supcon_tf.evaluation import corruptions

if "mode" not in flags.FLAGS:
    command_line.define_flags()

# For every flag: not a number, no end, none, less than none, more than any run can use.
ODD_VALUES = ("nan", "inf", "-inf", "0", "-1", "1e300", "1" + 30 * "0")
NUMBER_TYPES = (flag_types.Number, flag_types.NumberList, flag_types.OneOf)


def own_flags():
    return [flags.FLAGS[name] for name in command_line.own_flags()]


def message_of(*arguments):
    """What parsing says to the arguments: None if it accepts them."""
    with flagsaver.flagsaver():
        try:
            flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        except flags.Error as error:
            return str(error)
    return None


def test_every_flag_refuses_odd_values_by_name_or_accepts_them(capsys):
    tried, accepted = 0, []
    for flag in own_flags():
        for value in ODD_VALUES:
            message = message_of(f"--{flag.name}={value}")
            tried += 1
            if message is None:
                accepted.append((flag, value))
            else:
                assert flag.name in message and len(message) < 700, (flag.name, value, message)
    for flag, value in accepted:
        if isinstance(flag.parser, NUMBER_TYPES):
            assert value in ("0", "-1"), f"--{flag.name}={value}"
    with capsys.disabled():
        print(f"\n{tried} values of {len(own_flags())} flags: {tried - len(accepted)} refused by "
              f"name, {len(accepted)} accepted")  # fmt: skip
    assert tried >= 132


def test_every_number_among_the_flags_has_a_type_with_a_range():
    """absl's own numbers accept NaN and infinity."""
    plain = [
        flag.name
        for flag in own_flags()
        if isinstance(flag.parser, (flags.FloatParser, flags.IntegerParser))
    ]
    assert plain == []
    for path in Path(command_line.__file__).parent.glob("*.py"):
        definitions = re.findall(r"flags\.DEFINE\w*", path.read_text())
        assert definitions == (["flags.DEFINE_flag"] if path.name == "declare.py" else []), path


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e400", "0.4", "2.1", "", "one"])
def test_a_number_refuses_what_is_outside_of_its_range(value):
    number = flag_types.Number(at_least=0.5, at_most=2)
    assert number.parse("0.5") == 0.5 and number.parse(2) == 2.0
    with pytest.raises(ValueError, match="expected a number from 0.5 to 2"):
        number.parse(value)


@pytest.mark.parametrize("value", ["1.5", "nan", "inf", "0", "2147483648", "1e3", ""])
def test_an_integer_refuses_what_is_not_whole_or_too_large(value):
    assert flag_types.Integer(at_least=1).parse("2147483647") == 2**31 - 1
    with pytest.raises(ValueError, match="a whole number from 1 to 2,147,483,647"):
        flag_types.Integer(at_least=1).parse(value)


@pytest.mark.parametrize("value", ["", "1,", "2,1", "1,1", "1,nan", "1,inf", "0,1", "a"])
def test_a_list_refuses_a_bad_number_and_a_wrong_order(value):
    boundaries = flag_types.NumberList(flag_types.Number(above=0), increasing="strictly")
    assert boundaries.parse("1, 2.5") == (1.0, 2.5)
    with pytest.raises(ValueError, match="each larger than the one before; each a number above 0"):
        boundaries.parse(value)


def test_a_list_is_saved_as_it_was_given():
    """So that the flags of a saved run equal those of the same command line."""
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", "--crop_area_range=0.50,1"])
        assert flags.FLAGS["crop_area_range"].serialize() == "--crop_area_range=0.50,1"
        assert math.isclose(flags.FLAGS.crop_area_range[0], 0.5)


@pytest.mark.parametrize("name", ["data_dir", "model_dir", "dataset", "embed_dir", "tpu_name"])
@pytest.mark.parametrize("value", ["a\nb", "a\r", "\x00", "a\udce9", "a ", "a\u2028b"])
def test_a_text_is_one_line_of_characters(name, value):
    message = message_of(f"--{name}={value}")
    assert name in message and "expected one line of text" in message


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--batch_size=1"], "no negatives .* --batch_size=2 or more"),
        (["--batch_size=1", "--loss=triplet"], "no negatives .* --batch_size=2 or more"),
        (["--pretrain_decay_rate=-1"], "pretrain_decay_rate=-1: expected a number above 0"),
        (["--linear_decay_boundary_epochs=30,20"], "each larger than the one before"),
        (["--linear_decay_boundary_epochs=-1,20"], "each a number above 0"),
        (["--linear_decay_boundary_epochs=nan"], "each a number above 0"),
        (["--label_noise_prob=nan"], "label_noise_prob=nan: expected a number from 0 to 1"),
        (["--blur_probability=nan"], "blur_probability=nan: expected a number from 0 to 1"),
        (["--data_dir=a\n--batch_size=2"], "expected one line of text"),
    ],
)
def test_what_was_accepted_silently_is_refused_with_the_reason(arguments, message):
    assert re.search(message, message_of(*arguments))


def test_one_example_is_enough_where_nothing_is_contrasted_within_the_batch():
    assert message_of("--batch_size=1", "--mode=linear") is None
    assert message_of("--batch_size=1", "--loss=cross_entropy", "--num_views=1") is None
    assert message_of("--batch_size=1", "--queue_size=64") is None


# The stage that shows what a flag does, where it is not the first that lists it.
STAGE_OF = {"embed_dir": "embed", "model_dir": "export", "eval_dataset": "eval"}
FEW_STEPS = (
    "--pretrain_epochs=0.1", "--linear_epochs=0.1", "--finetune_epochs=0.1",
    "--pretrain_warmup_epochs=0", "--finetune_warmup_epochs=0", "--noonline_probe",
    "--knn_interval_epochs=0", "--eval_train_examples=50", "--steps_per_loop=2",
)  # fmt: skip


@pytest.mark.slow
def test_every_accepted_odd_value_ends_in_one_message_or_in_the_run_asked_for(
    tmp_path, monkeypatch, capsys
):
    """What parsing accepts and is not the default goes through the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corruptions, "CORRUPTIONS", ("contrast",))
    write_trained(Path("base"))
    defaults, refused, ran = 0, [], []
    for flag in own_flags():
        accepted = [value for value in ODD_VALUES if message_of(f"--{flag.name}={value}") is None]
        if accepted == list(ODD_VALUES):  # They are texts to this flag, one as good as another.
            accepted = ["nan", "0"]
        for value in accepted:
            if str(flag.parser.parse(value)) == str(flag.default):
                defaults += 1
                continue
            outcome = outcome_of(flag.name, value)
            (ran if outcome is None else refused).append((flag.name, value))
            assert outcome is None or (flag.name in outcome and "Traceback" not in outcome), (
                flag.name, value, outcome,
            )  # fmt: skip
    with capsys.disabled():
        print(f"\naccepted by parsing: {defaults} defaults, {len(refused)} refused by the command "
              f"by name, {len(ran)} run: {' '.join(f'{n}={v}' for n, v in ran)}")  # fmt: skip
    assert ran and refused


def run_or_message(stage, *arguments):
    """The message of the command; None if it runs. Of a training it is a step without a graph."""
    if stage in ("pretrain", "linear", "finetune") and "_epochs=" not in arguments[-1]:
        seen = observe(*arguments, until="weights")
        assert "refused" in seen or "weights" in seen, (arguments, seen)
        return seen.get("refused")
    try:
        run_inside(*arguments)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def outcome_of(name, value):
    """The message of the command with one odd value; None if it runs and its record shows it."""
    stage = STAGE_OF.get(name) or next(
        (stage for stage, names in command_line.STAGE_FLAGS.items() if name in names), "pretrain"
    )
    model_dir = Path("run")
    shutil.rmtree(model_dir, ignore_errors=True)
    shutil.copytree("base", model_dir)
    if stage in ("pretrain", "linear"):
        shutil.rmtree(model_dir / stage)
    arguments = [*FEW_STEPS, f"--mode={stage}"]
    if name != "model_dir":
        arguments.append(f"--model_dir={model_dir}")
    if stage == "predict":
        Path("new_images").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save("new_images/black.png")
        arguments.append("--predict_dir=new_images")
    message = run_or_message(stage, *arguments, f"--{name}={value}")
    if message is not None:
        return message
    saved = model_dir / stage / "stage.flags"
    if name in command_line.STAGE_FLAGS.get(stage, ()):
        lines = saved.read_text().splitlines()
        is_saved = any(line.lstrip("-").removeprefix("no").startswith(name) for line in lines)
        assert is_saved, (name, value)
    return None

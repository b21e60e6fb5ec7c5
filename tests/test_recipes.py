"""Every recipe: what it says of itself, its network at full size, its schedule, one step of it."""

import contextlib
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from keras.src.backend.common import global_state

from supcon_tf.cli import command_line, rules
from supcon_tf.data import defaults
from supcon_tf.models import contrastive
from supcon_tf.stages import inputs, pretrain, trainer

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "flags").glob("*.flags"))
NUM_EXAMPLES = {
    "imagenet2012": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "digits": 1_437,
    "folder": 2_000,
}  # fmt: skip
NUM_CLASSES = {"imagenet2012": 1_000, "cifar10": 10, "cifar100": 100, "digits": 10, "folder": 10}

if "mode" not in flags.FLAGS:
    command_line.define_flags()


def parse(*arguments):
    """The value of every flag after parsing, by name."""
    with flagsaver.flagsaver():
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        return flags.FLAGS.flag_values_dict()


@contextlib.contextmanager
def recipe(name, *arguments):
    """The flags of a recipe while the context lasts."""
    with flagsaver.flagsaver():
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", f"--recipe={name}", *arguments]))
        yield


def read(name):
    return (ROOT / "flags" / f"{name}.flags").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_other_flags_override_a_recipe_wherever_they_stand(name):
    (batch_size,) = re.findall(r"^--batch_size=(\d+)$", read(name), re.MULTILINE)
    assert parse(f"--recipe={name}")["batch_size"] == int(batch_size)
    assert parse(f"--recipe={name}", "--batch_size=8")["batch_size"] == 8
    assert parse("--batch_size=8", f"--recipe={name}")["batch_size"] == 8
    assert parse("--batch_size=8", "--recipe", name)["batch_size"] == 8


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_says_what_a_recipe_is_and_costs_and_reaches(name):
    header = " ".join(re.findall(r"^# *(.*)$", read(name), re.MULTILINE))
    assert f"python -m supcon_tf.main --recipe={name}" in header
    assert "Hardware:" in header and "Expected:" in header
    hardware = header.split("Hardware:")[1].split("Expected:")[0]
    assert re.search(r"minute|hour", hardware)
    if parse(f"--recipe={name}")["dataset"] != "digits":
        assert "Khosla et al. 2020" in header
        # A figure is measured, and then a page has its command, or the header says that it is not.
        is_measured = re.search(r"measured .*docs/\w+\.md", header) is not None
        assert is_measured != ("Not run here" in header or "estimated" in header)


# Parameters of the encoder with the scale and offset of batch norm, and of what is trained on top:
# the projection head, or with cross-entropy the classifier. Derived from Khosla et al.'s released
# code layer by layer.
IMAGENET_50, IMAGENET_101, IMAGENET_200 = 23_508_032, 42_500_160, 62_624_832
CIFAR_50 = IMAGENET_50 - 7_680  # A first convolution of 3 x 3 instead of 7 x 7.
HEAD_1, HEAD_2, HEAD_3 = 262_144, 4_458_496, 8_658_944
PARAMETERS = {
    "supcon_imagenet_resnet50": (IMAGENET_50, HEAD_1),
    "supcon_imagenet_resnet101": (IMAGENET_101, HEAD_1),
    "supcon_imagenet_resnet200": (IMAGENET_200, HEAD_1),
    "supcon_cifar10_resnet50": (CIFAR_50, HEAD_2),
    "simclr_imagenet_resnet50": (IMAGENET_50, HEAD_3),
    "simclr_cifar10_resnet50": (CIFAR_50, HEAD_3),
    "cross_entropy_imagenet_resnet50": (IMAGENET_50, 2_049_000),
    "cross_entropy_imagenet_resnet200": (IMAGENET_200, 2_049_000),
    "cross_entropy_cifar10_resnet50": (CIFAR_50, 20_490),
    "supcontrast_cross_entropy_cifar10_resnet50": (CIFAR_50, 20_490),
    "supcontrast_cross_entropy_cifar100_resnet50": (CIFAR_50, 204_900),
    "supcontrast_supcon_cifar10_resnet50": (CIFAR_50, HEAD_2),
    "supcontrast_supcon_cifar100_resnet50": (CIFAR_50, HEAD_2),
    "supcontrast_simclr_cifar10_resnet50": (CIFAR_50, HEAD_2),
    "supcontrast_simclr_cifar100_resnet50": (CIFAR_50, HEAD_2),
    "supcon_queue_imagenet_resnet50": (IMAGENET_50, HEAD_2),
    "cifar10_cpu": (77_680, 64 * 128 + 65 * 10),  # Projection head and classifier.
    "photos_small": (77_680, 64 * 128 + 65 * 10),
    "digits": (77_680, 64 * 128),
    # Without the scale and offset of batch norm, which are frozen: 2 (4 x 16 + 3 x 32 + 3 x 64).
    "finetune_pretrained": (77_680 - 704, 64 * 128),
}


class NoOptimizer:
    """Stands for an optimizer, whose slots need values."""

    def build(self, variables):
        pass


def networks():
    """Every recipe; slow are those with an encoder and a head that recipes before them have."""
    seen = set()
    for name in PARAMETERS:
        is_new = not {*enumerate(PARAMETERS[name])} <= seen
        seen.update(enumerate(PARAMETERS[name]))
        yield pytest.param(name, marks=() if is_new else pytest.mark.slow)


def test_every_recipe_has_its_parameters():
    assert sorted(PARAMETERS) == RECIPES


@pytest.fixture(scope="module")
def create_resnet_once():
    """`create_encoder` that gives recipes with the same ResNet the same model."""
    create, created = contrastive.create_encoder, {}

    def create_encoder(architecture, **options):
        if architecture == "tiny":  # A recipe freezes its batch norm.
            return create(architecture, **options)
        key = repr((architecture, sorted(options.items())))
        if key not in created:
            created[key] = create(architecture, **options)
        return created[key]

    return create_encoder


@pytest.mark.parametrize("name", list(networks()))
def test_a_recipe_builds_its_network_at_full_size(name, monkeypatch, create_resnet_once):
    """Shapes without values, so that it takes no memory; a momentum network would copy values."""
    monkeypatch.setattr(trainer, "optimizer_from_flags", lambda *_, **__: NoOptimizer())
    monkeypatch.setattr(contrastive, "create_encoder", create_resnet_once)
    waiting = list(global_state.get_global_attribute("uninitialized_variables", []))
    with (
        recipe(name, "--noonline_probe", "--queue_size=0", "--encoder_momentum=0.999"),
        keras.StatelessScope(initialize_variables=False),
    ):
        values = flags.FLAGS
        step = pretrain.step_from_flags(
            values, values.image_size or 20, NUM_CLASSES[values.dataset], None, (None, None)
        )
    # Else Keras would fill in the values at its next chance, in some later test.
    global_state.set_global_attribute("uninitialized_variables", waiting)
    encoder, on_top = PARAMETERS[name]
    assert count(step.encoder.trainable_variables) == encoder
    assert count(step.variables) == encoder + on_top


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


# Peak learning rate and steps of pretraining, then of the linear stage, from the released scripts
# (https://github.com/google-research/google-research/tree/master/supcon/scripts) and the flags of
# SupContrast, whose rates are divided by 0.07.
SCHEDULES = {
    "supcon_imagenet_resnet50": (9.6, 72_983, 1.2, 18_767),
    "supcon_imagenet_resnet101": (6.4, 109_474, 0.8, 28_150),
    "supcon_imagenet_resnet200": (3.2, 218_949, 0.8, 28_150),
    "supcon_cifar10_resnet50": (8.0, 12_207, 40.0, 1_220),
    "simclr_imagenet_resnet50": (7.2, 20_852, 2.4, 18_767),
    "simclr_cifar10_resnet50": (2.0, 19_531, 1.0, 4_394),
    "cross_entropy_imagenet_resnet50": (2.4, 41_704, None, 0),
    "cross_entropy_imagenet_resnet200": (1.6, 218_949, None, 0),
    "cross_entropy_cifar10_resnet50": (0.4, 48_828, None, 0),
    "supcontrast_cross_entropy_cifar10_resnet50": (0.8, 24_414, None, 0),
    "supcontrast_cross_entropy_cifar100_resnet50": (0.8, 24_414, None, 0),
    "supcontrast_supcon_cifar10_resnet50": (0.5 / 0.07, 48_828, 10.0, 4_882),
    "supcontrast_supcon_cifar100_resnet50": (0.5 / 0.07, 48_828, 10.0, 4_882),
    "supcontrast_simclr_cifar10_resnet50": (0.5 / 0.07, 48_828, 2.0, 4_882),
    "supcontrast_simclr_cifar100_resnet50": (0.5 / 0.07, 48_828, 2.0, 4_882),
    "supcon_queue_imagenet_resnet50": (0.03, 1_000_911, 30.0, 500_455),
    "cifar10_cpu": (0.003, 46_875, None, 15_625),  # Its classifier is fitted, without steps.
    "photos_small": (0.003, 7_500, None, 625),
    "digits": (0.003, 673, 2.5, 449),
    "finetune_pretrained": (0.00025, 449, 2.5, 449),
}


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_and_lengths_are_the_published(name):
    with recipe(name):
        pretraining, linear = (
            trainer.schedule_from_flags(flags.FLAGS, stage, NUM_EXAMPLES[flags.FLAGS.dataset])
            for stage in ("pretrain", "linear")
        )
    peak, num_steps, linear_peak, linear_steps = SCHEDULES[name]
    assert pretraining.peak_learning_rate == pytest.approx(peak, rel=1e-6)
    assert (pretraining.total_steps, linear.total_steps) == (num_steps, linear_steps)
    if linear_peak is not None:
        assert linear.peak_learning_rate == pytest.approx(linear_peak, rel=1e-6)


def test_the_learning_rate_converted_for_the_scale_of_the_loss_makes_the_same_update():
    """theirs: w - 0.5 (g / 0.07 + 1e-4 w); ours: w - rate (g + decay w)."""
    recipe = parse("--recipe=supcontrast_supcon_cifar10_resnet50")
    rate = recipe["pretrain_base_learning_rate"] * recipe["batch_size"] / 256
    gradient, weight = 0.3, 2.0
    theirs = 0.5 * (gradient / 0.07 + 1e-4 * weight)
    ours = rate * (gradient + recipe["pretrain_weight_decay"] * weight)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_recipes_augment_as_published():
    def augmentation(name):
        values = parse(f"--recipe={name}")
        kinds = (values["augmentation_type"], values["linear_augmentation_type"])
        return *kinds, values["augmentation_magnitude"], values["augmentation_compat"]

    for name in RECIPES:
        if "_imagenet_" in name and "queue" not in name:
            kind = "autoaugment"
            kind = "stacked_randaugment" if "resnet200" in name else kind
            kind = "simclr" if name.startswith("simclr") else kind
            assert augmentation(name) == (kind, kind, 1.0, "reference")
        elif name.startswith("supcontrast_cross_entropy"):
            assert augmentation(name)[:2] == ("identity", "identity")
        elif "_cifar10" in name:
            linear, compat = "simclr", "reference"
            if name.startswith("supcontrast"):
                linear, compat = "identity", "pillow"
            assert augmentation(name) == ("simclr", linear, 0.5, compat)
            assert parse(f"--recipe={name}")["use_pytorch_color_jitter"]


def test_recipes_crop_as_their_source():
    for name in RECIPES:
        is_torchvision = name.startswith(("supcontrast", "supcon_queue"))
        sampler = "torchvision" if is_torchvision else "reference"
        assert parse(f"--recipe={name}")["crop_compat"] == sampler


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("supcontrast")])
def test_supcontrasts_recipes_have_its_schedule(name):
    """From 0.01 to the cosine of epoch 10, then one rate per epoch to a thousandth of the peak;
    but for cross-entropy all divided by 0.07."""
    with recipe(name):
        schedule = trainer.schedule_from_flags(flags.FLAGS, "pretrain", 50_000)
        epochs = flags.FLAGS.pretrain_epochs
    peak, scale = (0.8, 1) if "cross_entropy" in name else (0.5, 0.07)
    lowest = peak / 1_000

    def cosine(epoch):
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    for epoch, expected in ((0, 0.01), (10.5, cosine(11)), (99.5, cosine(100)), (epochs, lowest)):
        step = min(int(epoch * 50_000 / 1024), schedule.total_steps - 1)
        assert float(schedule(step)) * scale == pytest.approx(expected, rel=1e-4)


def test_photos_small_is_what_is_chosen_for_small_photographs():
    facts = defaults.ImageFacts(num_examples=2_000, side_px=32, is_color=True, num_classes=10)
    values = parse("--recipe=photos_small")
    for name, text in defaults.choose(facts).texts().items():
        assert values[name] == flags.FLAGS[name].parser.parse(text), name


def test_cifar10_cpu_is_photos_small_with_another_length():
    small, large = (parse(f"--recipe={name}") for name in ("photos_small", "cifar10_cpu"))
    changed = {name for name in small if small[name] != large[name] and name != "flagfile"}
    assert changed == {"recipe", "dataset", "pretrain_epochs", "pretrain_warmup_epochs"}


def test_a_time_budget_takes_the_place_of_the_length_of_a_recipe():
    values = parse("--recipe=photos_small", "--time_budget_minutes=5")
    assert values["cross_entropy_weight"] == 1 and values["dataset"] == "folder"
    with recipe("photos_small", "--time_budget_minutes=5"):
        assert not rules.is_given(flags.FLAGS, "pretrain_epochs")
        assert not rules.is_given(flags.FLAGS, "pretrain_warmup_epochs")
    for given in (["--recipe=photos_small"], []):
        with pytest.raises(flags.Error, match="--pretrain_epochs=7 cannot be given too"):
            parse(*given, "--time_budget_minutes=5", "--pretrain_epochs=7")


def test_the_queue_recipe_whitens_as_moco():
    values = parse("--recipe=supcon_queue_imagenet_resnet50")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(values["whitening_mean"], 2 * mean - 1)
    np.testing.assert_allclose(values["whitening_std"], 2 * std)


def test_headers_name_the_precision_of_the_scripts():
    for name in RECIPES:
        is_of_the_reference = bool(re.search(r"as the reference's\s+(# )?script", read(name)))
        assert is_of_the_reference == ("--precision=mixed_bfloat16" in read(name)), name
    assert "--microbatch_size=128" in read("supcon_cifar10_resnet50")


SMALL = (
    "--dataset=digits", "--image_size=16", "--batch_size=8", "--encoder=tiny",
    "--first_conv_kernel_size=3", "--first_conv_stride=1", "--nouse_initial_max_pool",
    "--eval_crop_method=auto",
)  # fmt: skip


PAGE = (ROOT / "docs" / "coming_from.md").read_text()
SCRIPTS = ("main_supcon.py", "main_linear.py", "main_ce.py")


def flags_named_as_ours():
    """Every flag of the page that is not one of the other programs: not of a first column, nor
    after the name of a script of SupContrast."""
    rows = [line.split("|")[2:] if line.startswith("|") else [line] for line in PAGE.splitlines()]
    # Of a table with three sides the last alone is ours.
    rows = [row[2:] if len(row) == 4 else row for row in rows]
    text = "\n".join("|".join(row) for row in rows)
    for script in SCRIPTS:
        text = re.sub(rf"`{script}[^`]*`", "", text)
    return set(re.findall(r"--(\w+)", text)) - {"flagfile", "help"}


def test_the_page_for_newcomers_names_flags_and_recipes_that_exist():
    names = {*flags.FLAGS} | {f"no{name}" for name in flags.FLAGS}
    same = PAGE.split("same name and meaning:")[1].split("Upper-case values")[0]
    same = re.findall(r"`(\w+)`", same)
    assert len(same) > 30
    # What only the others have stands on the page to say that it is not here.
    only_theirs = {"warm"}
    unknown = {*same, *flags_named_as_ours()} - names - only_theirs
    assert not unknown
    assert len(flags_named_as_ours()) > 60
    for name in re.findall(r"--recipe=(\w+)", PAGE):
        assert name in RECIPES


# All flags of the others: hparams_flags.py and launcher.py of
# https://github.com/google-research/google-research/tree/master/supcon, and the three scripts of
# https://github.com/HobbitLong/SupContrast. Of stages the part after stage_1_ or stage_2_.
FLAGS_OF_OTHERS = """
batch_size eval_batch_size resnet_width resnet_architecture resnet_depth zero_initialize_classifier
use_projection_batch_norm normalize_embedding first_conv_kernel_size first_conv_stride
use_initial_max_pool projection_head_layers stop_gradient_before_classification_head
stop_gradient_before_projection_head use_global_batch_norm use_labels temperature
scale_by_temperature contrast_mode summation_location denominator_mode positives_cap label_smoothing
contrastive_loss_weight cross_entropy_loss_weight weight_decay use_encoder_weight_decay
use_projection_head_weight_decay use_classification_head_weight_decay use_bias_weight_decay epochs
warmup_epochs base_learning_rate optimizer learning_rate_decay decay_rate decay_boundary_epochs
epochs_per_decay update_encoder_batch_norm rmsprop_epsilon input_fn num_images label_noise_prob
shard_per_host allow_mixed_precision image_size augmentation_type augmentation_magnitude
blur_probability defer_blurring use_pytorch_color_jitter apply_whitening crop_area_range
eval_crop_method crop_padding warm_start_classifier warm_start_projection_head warm_start_encoder
batch_norm_in_train_mode ignore_missing_checkpoint_vars hparams mode model_dir master
summary_interval_steps save_interval_steps max_checkpoints_to_keep keep_checkpoint_interval_secs
steps_per_loop use_tpu eval_interval_secs reference_ckpt data_dir tpu_name tpu_zone gcp_project
print_freq save_freq num_workers learning_rate lr_decay_epochs lr_decay_rate momentum model dataset
mean std data_folder size method temp cosine syncBN warm trial ckpt
"""


def test_the_page_for_newcomers_says_what_to_use_for_every_flag_of_the_others():
    for name in FLAGS_OF_OTHERS.split():
        assert re.search(rf"(--|`|stage_[12]_|`_){name}\b", PAGE), name


def test_the_page_for_newcomers_has_the_defaults():
    table = PAGE.split("## Defaults that differ")[1].split("**Learning rates")[0]
    ours = [line.split("|")[4] for line in table.splitlines() if line.startswith("|")]
    named = re.findall(r"--(\w+)=([^`\s]+)", " ".join(ours))
    assert len(named) > 30
    for name, value in named:
        default = flags.FLAGS[name].default
        assert default == flags.FLAGS[name].parser.parse(value), name


@pytest.fixture(scope="module")
def draw_views():
    """A function flags -> eight digits as the flags augment them; compiled once per policy."""
    drawn = {}

    def draw(values):
        names = ("augmentation_type", "augmentation_magnitude", "augmentation_compat", "num_views",
                 "use_pytorch_color_jitter", "blur_probability", "crop_area_range")  # fmt: skip
        key = str([values[name].value for name in names])
        if key not in drawn:
            source = inputs.sources_from_flags(values)[0]
            views = pretrain.views_from_flags(values, source)
            batches = inputs.train_batches_from_flags(
                values, tf.distribute.get_strategy(), source, views, start_step=0
            )
            drawn[key] = next(iter(batches))
        return drawn[key]

    return draw


# The other recipes take their step with --slow.
QUICK_STEPS = ("digits", "supcon_cifar10_resnet50")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK_STEPS else pytest.mark.slow) for name in RECIPES],
)
def test_a_recipe_takes_one_step(name, draw_views):
    """With the tiny encoder and the digits, and everything else as the recipe has it."""
    with recipe(name, *SMALL):
        values = flags.FLAGS
        schedule = trainer.schedule_from_flags(values, "pretrain", NUM_EXAMPLES["digits"])
        schedule.warmup_steps = 0  # Its first step has the learning rate 0.
        step = pretrain.step_from_flags(values, 16, 10, schedule, (None, None))
        before = [variable.numpy() for variable in step.variables]
        metrics = step(draw_views(values))
        assert {*step.metric_names} <= {*metrics}
        for metric in metrics.values():
            assert np.isfinite(metric)
        changed = [np.any(a != b.numpy()) for a, b in zip(before, step.variables, strict=True)]
        # Not all: the last gammas of the blocks start at 0. If they are frozen there, as they are
        # not in a pretrained encoder, only the layers outside the blocks change.
        assert np.mean(changed) > (0.3 if values.freeze_batch_norm else 0.5)

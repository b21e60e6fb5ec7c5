"""Every flag of every stage does something there: one row per stage and flag.

A row says which flags to change, what is first to differ from a run without the change, and with
which flags both runs are made. The stages are run up to that point and do not train.
"""

import functools
import shutil
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import pytest
from helpers import prepared_tfds
from helpers.command import run_inside
from helpers.stage_probe import SETTINGS, START, STEP, observe
from helpers.tiny_images import write_images
from helpers.trained_folder import write_trained
from PIL import Image

from supcon_tf.cli import declare
from supcon_tf.evaluation import corruptions
from supcon_tf.models import contrastive

COMMON = (
    "--num_images=16", "--batch_size=8", "--strategy=one_device", "--augmentation_type=identity",
)  # fmt: skip
STAGE = {
    "pretrain": (*COMMON, "--image_size=8", "--pretrain_epochs=4", "--pretrain_warmup_epochs=0"),
    "linear": (
        *COMMON, "--linear_epochs=4", "--linear_warmup_epochs=0", "--linear_optimizer=momentum",
    ),
    "finetune": (*COMMON, "--finetune_epochs=4", "--finetune_warmup_epochs=0"),
    "eval": ("--strategy=one_device",),
    "predict": ("--strategy=one_device", "--predict_dir={folder}/test"),
    "embed": ("--strategy=one_device",),
    "export": ("--strategy=one_device",),
    "report": ("--strategy=one_device",),
    "preview": (*COMMON, "--image_size=8"),
    "inspect": ("--strategy=one_device",),
    "robustness": ("--strategy=one_device", "--robustness_examples=6"),
}  # fmt: skip


class Row(NamedTuple):
    shows: str  # What is the first to differ.
    change: str
    base: str = ""


FOLDER = "--dataset=folder --data_dir={folder}"
CSV = "--dataset=csv --data_csv={csv}"
TFDS = "--dataset=two_greys --data_dir={tfds}"
# Where a run takes place, and what it reads, is the same for all stages that read images.
PLACE = {
    "strategy": Row("strategy", "--strategy=mirrored"),
    "logical_cpus": Row("split_cpu", "--logical_cpus=4", "--strategy=mirrored"),
    "deterministic": Row("deterministic", "--deterministic"),
    "tpu_name": Row("tpu", "--tpu_name=b", "--strategy=tpu --tpu_name=a"),
    "tpu_zone": Row("tpu", "--tpu_zone=b", "--strategy=tpu --tpu_name=a"),
    "gcp_project": Row("tpu", "--gcp_project=b", "--strategy=tpu --tpu_name=a"),
}
EVALUATED = {
    "eval_batch_size": Row("evaluated", "--eval_batch_size=8"),
    "eval_crop_method": Row("evaluated", "--eval_crop_method=resize_then_crop"),
    "crop_padding": Row("evaluated", "--crop_padding=6", "--eval_crop_method=resize_then_crop"),
}
EXCLUDE = {
    "exclude": Row("said", "--exclude={issues}", FOLDER),
    "exclude_kinds": Row("said", "--exclude_kinds=leak", f"{FOLDER} --exclude={{issues}}"),
}
READ = {
    **EXCLUDE,
    "holdout_classes": Row("evaluated", "--holdout_classes=3"),
    "skip_broken_images": Row(
        "refused", "--skip_broken_images", "--dataset=folder --data_dir={broken}"
    ),
    "max_image_megapixels": Row("refused", "--max_image_megapixels=0.0001", FOLDER),
    # The line about the dataset counts the examples of each split.
    "validation_split": Row("said", "--validation_split=0.5", FOLDER),
    "train_split": Row("said", "--train_split=validation+train", TFDS),
    "test_split": Row("said", "--test_split=train", TFDS),
}


def of_csv(shows):
    return {
        "data_csv": Row(shows, "--data_csv={other_csv}", CSV),
        "label_type": Row(shows, "--label_type=multi_label", CSV),
        "label_columns": Row(shows, "--label_columns=other", CSV),
    }


BATCHES = {
    **EXCLUDE,
    "holdout_classes": Row("batch", "--holdout_classes=3"),
    "dataset": Row("batch", FOLDER),
    "data_dir": Row("batch", "--data_dir={other_folder}", FOLDER),
    **of_csv("batch"),
    "seed": Row("batch", "--seed=1"),
    "batch_size": Row("batch", "--batch_size=4"),
    "num_images": Row("batch", "--num_images=12"),
    "images_per_class": Row("batch", "--images_per_class=1", "--num_images=0"),
    "label_noise_prob": Row("batch", "--label_noise_prob=0.9"),
    "class_balanced": Row("batch", "--class_balanced"),
    "crop_compat": Row("batch", "--crop_compat=torchvision"),
    "fast_decode": Row("batch", "--fast_decode", "--dataset=folder --data_dir={jpegs}"),
    "horizontal_flip": Row("batch", "--horizontal_flip=true"),
}


def augmentation(stage):
    """The rows of a stage that augments by `--<stage>augmentation_type`."""
    name = f"{stage}augmentation_type"
    randaugment, simclr = f"--{name}=randaugment --augmentation_magnitude=9", f"--{name}=simclr"
    return {
        name: Row("batch", f"--{name}=simclr"),
        f"{stage}crop_area_range": Row("batch", f"--{stage}crop_area_range=0.5,0.6"),
        "augmentation_magnitude": Row("batch", "--augmentation_magnitude=1", simclr),
        "blur_probability": Row("batch", "--blur_probability=1", simclr),
        "warp_probability": Row("batch", "--warp_probability=1", simclr),
        "use_pytorch_color_jitter": Row("batch", "--use_pytorch_color_jitter", simclr),
        "augmentation_compat": Row("batch", "--augmentation_compat=reference", randaugment),
        "randaugment_num_layers": Row("batch", "--randaugment_num_layers=3", randaugment),
        "stacked_randaugment_magnitude": Row(
            "batch", "--stacked_randaugment_magnitude=2", f"--{name}=stacked_randaugment"
        ),
    }


def training(stage, adaptive="rmsprop"):
    """The rows of `--<stage>_epochs` and the like, and of what all training shares."""
    exponential = f"--{stage}_learning_rate_decay=exponential --{stage}_epochs_per_decay=1"
    piecewise = f"--{stage}_learning_rate_decay=piecewise --{stage}_decay_boundary_epochs=1,2"
    return {
        f"{stage}_epochs": Row("rates", f"--{stage}_epochs=3"),
        f"{stage}_optimizer": Row("weights", f"--{stage}_optimizer=rmsprop"),
        f"{stage}_base_learning_rate": Row("weights", f"--{stage}_base_learning_rate=0.7"),
        f"{stage}_weight_decay": Row("weights", f"--{stage}_weight_decay=0.1"),
        f"{stage}_rmsprop_epsilon": Row(
            "weights", f"--{stage}_rmsprop_epsilon=0.1", f"--{stage}_optimizer=rmsprop"
        ),
        f"{stage}_warmup_epochs": Row("rates", f"--{stage}_warmup_epochs=1"),
        f"{stage}_warmup_start": Row(
            "rates", f"--{stage}_warmup_start=0.5", f"--{stage}_warmup_epochs=1"
        ),
        f"{stage}_learning_rate_decay": Row("rates", f"--{stage}_learning_rate_decay=none"),
        f"{stage}_decay_rate": Row("rates", f"--{stage}_decay_rate=0.5", exponential),
        f"{stage}_epochs_per_decay": Row("rates", f"--{stage}_epochs_per_decay=2", exponential),
        f"{stage}_decay_boundary_epochs": Row(
            "rates", f"--{stage}_decay_boundary_epochs=1,3", piecewise
        ),
        "steps_per_loop": Row("steps_per_loop", "--steps_per_loop=3"),
        "summary_interval_steps": Row("summary_interval_steps", "--summary_interval_steps=3"),
        "save_interval_steps": Row("save_interval_steps", "--save_interval_steps=3"),
        "max_checkpoints_to_keep": Row("max_to_keep", "--max_checkpoints_to_keep=3"),
        "jit_compile": Row("jit_compile", "--jit_compile"),
        "profile_steps": Row("profile_steps", "--profile_steps=2,4"),
        "data_service": Row("refused", "--data_service=grpc://127.0.0.1:1"),
        **PLACE, **EVALUATED, **READ, **BATCHES,
    }  # fmt: skip


def classifying(stage):
    trained = "--reference_ckpt={trained}"
    return {
        **training(stage),
        **augmentation(f"{stage}_"),
        "use_bias_weight_decay": Row(
            "weights", "--nouse_bias_weight_decay",
            f"{trained} --warm_start_classifier --{stage}_weight_decay=0.1",
        ),
        "normalize_embedding": Row("loss", "--nonormalize_embedding"),
        "zero_initialize_classifier": Row("initial", "--zero_initialize_classifier"),
        "label_smoothing": Row("loss", "--label_smoothing=0.3"),
        "warm_start_classifier": Row("initial", "--warm_start_classifier", trained),
        "ignore_missing_checkpoint_vars": Row(
            "refused", "--ignore_missing_checkpoint_vars",
            "--reference_ckpt={incomplete} --warm_start_classifier",
        ),
        "reference_ckpt": Row(
            "initial", "--reference_ckpt={other_trained}", "--model_dir={empty} " + trained
        ),
    }  # fmt: skip


WIDE = "--projection_head_layers=8,4"
RESNET = "--encoder=resnet_v1 --resnet_depth="
JOINT = "--cross_entropy_weight=1"
HALF = f"{FOLDER} --validation_split=0.5"  # The seed decides which half.
OTHER = "--ood_data_dir={other_folder}"
ROWS = {
    "pretrain": {
        **training("pretrain"),
        **augmentation(""),
        "image_size": Row("batch", "--image_size=10"),
        "reference_ckpt": Row("initial", "--reference_ckpt={other_trained}"),
        "warm_start_encoder": Row(
            "initial", "--nowarm_start_encoder", "--reference_ckpt={other_trained}"
        ),
        "warm_start_projection_head": Row(
            "initial", "--warm_start_projection_head", f"--reference_ckpt={{biased}} {WIDE}"
        ),
        "ignore_missing_checkpoint_vars": Row(
            "refused", "--ignore_missing_checkpoint_vars",
            f"--reference_ckpt={{biased}} --warm_start_projection_head {WIDE} "
            "--projection_head_use_batch_norm",
        ),
        "num_views": Row("batch", "--num_views=3"),
        "whitening": Row("loss", "--whitening=none", FOLDER),
        "whitening_mean": Row(
            "loss", "--whitening_mean=0.5,0.1,0",
            "--whitening=given --whitening_mean=0,0,0 --whitening_std=1,1,1",
        ),
        "whitening_std": Row(
            "loss", "--whitening_std=0.5,0.1,1",
            "--whitening=given --whitening_mean=0.2,0,0 --whitening_std=1,1,1",
        ),
        "encoder": Row("initial", f"{RESNET}18"),
        "encoder_weights": Row("initial", "--encoder_weights={other_trained}"),
        "freeze_batch_norm": Row("loss", "--freeze_batch_norm", "--reference_ckpt={trained}"),
        "resnet_depth": Row("initial", "--resnet_depth=34", f"{RESNET}18"),
        "resnet_width": Row("initial", "--resnet_width=2"),
        "first_conv_kernel_size": Row("initial", "--first_conv_kernel_size=5"),
        "first_conv_stride": Row("loss", "--first_conv_stride=2"),
        "use_initial_max_pool": Row("loss", "--use_initial_max_pool"),
        "initial_max_pool_padding": Row(
            "loss", "--initial_max_pool_padding=symmetric", "--use_initial_max_pool"
        ),
        "use_global_batch_norm": Row(
            "loss", "--nouse_global_batch_norm", "--strategy=mirrored --batch_size=16"
        ),
        "projection_head_layers": Row("initial", f"{WIDE}"),
        "projection_head_use_batch_norm": Row("initial", "--projection_head_use_batch_norm", WIDE),
        "projection_head_use_batch_norm_beta": Row(
            "initial", "--noprojection_head_use_batch_norm_beta",
            f"{WIDE} --projection_head_use_batch_norm",
        ),
        "normalize_embedding": Row("loss", "--nonormalize_embedding", JOINT),
        "loss": Row("loss", "--loss=npairs"),
        "cross_entropy_weight": Row("initial", JOINT),
        "stop_gradient_before_classifier": Row(
            "weights", "--stop_gradient_before_classifier", JOINT
        ),
        "pretrain_label_smoothing": Row("loss", "--pretrain_label_smoothing=0.3", JOINT),
        "use_labels": Row("loss", "--nouse_labels"),
        "temperature": Row("loss", "--temperature=0.3"),
        "contrast_mode": Row("loss", "--contrast_mode=one_view"),
        "summation_location": Row("loss", "--summation_location=inside"),
        "denominator_mode": Row("loss", "--denominator_mode=one_positive"),
        "positives_cap": Row("loss", "--positives_cap=0"),
        "scale_by_temperature": Row("loss", "--noscale_by_temperature"),
        "loss_variant": Row("loss", "--loss_variant=sincere"),
        "epsilon": Row("loss", "--epsilon=0.5", "--denominator_mode=one_positive"),
        "pair_weights": Row(
            "loss", "--use_labels --pair_weights=gaussian",
            f"{CSV} --label_type=real --nouse_labels",
        ),
        "gaussian_bandwidth": Row(
            "loss", "--gaussian_bandwidth=3", f"{CSV} --label_type=real --pair_weights=gaussian"
        ),
        "spread_weight": Row("loss", "--spread_weight=0.5"),
        "denominator_weighting": Row("loss", "--denominator_weighting=class"),
        "loss_cache_mb": Row("cache_mb", "--loss_cache_mb=0"),
        "queue_size": Row("initial", "--queue_size=32"),
        "encoder_momentum": Row("weights", "--encoder_momentum=0.5", "--queue_size=32"),
        "microbatch_size": Row("loss", "--microbatch_size=4", "--nouse_global_batch_norm"),
        "precision": Row("loss", "--precision=mixed_bfloat16"),
        "online_probe": Row("initial", "--noonline_probe"),
        "knn_interval_epochs": Row("evaluate_interval_steps", "--knn_interval_epochs=2"),
        "pretrain_use_encoder_weight_decay": Row(
            "weights", "--nopretrain_use_encoder_weight_decay", "--pretrain_weight_decay=0.1"
        ),
        "pretrain_use_projection_head_weight_decay": Row(
            "weights", "--nopretrain_use_projection_head_weight_decay",
            "--pretrain_weight_decay=0.1",
        ),
        "use_bias_weight_decay": Row(
            "weights", "--nouse_bias_weight_decay",
            f"--reference_ckpt={{biased}} --warm_start_projection_head {WIDE} "
            "--pretrain_weight_decay=0.1",
        ),
    },
    "linear": classifying("linear"),
    "finetune": {
        **classifying("finetune"),
        "freeze_batch_norm": Row("loss", "--freeze_batch_norm"),
    },
    "eval": {
        "seed": Row("evaluated", "--seed=1", f"{HALF} --eval_split=train"),
        **PLACE, **EVALUATED, **READ, **of_csv("evaluated"),
        "eval_data_csv": Row(
            "evaluated", "--eval_data_csv={other_csv}", "--eval_dataset=csv --eval_data_csv={csv}"
        ),
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "eval_dataset": Row("evaluated", "--eval_dataset=folder --eval_data_dir={folder}"),
        "eval_data_dir": Row("evaluated", "--eval_data_dir={folder}"),
        "eval_split": Row("evaluated", "--eval_split=train"),
        "eval_train_examples": Row("written", "--eval_train_examples=0", FOLDER),
        "eval_similarity_examples": Row("written", "--eval_similarity_examples=0", FOLDER),
        "ood_dataset": Row("written", f"--ood_dataset=folder {OTHER}", FOLDER),
        "ood_data_dir": Row("written", OTHER, FOLDER),
    },
    "predict": {
        "seed": Row("evaluated", "--seed=1", HALF),
        **PLACE, **EVALUATED, **READ, **of_csv("evaluated"),
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "predict_dir": Row("evaluated", "--predict_dir={other_folder}", "--predict_neighbors=0"),
        "predict_top_k": Row("written", "--predict_top_k=1", FOLDER),
        "predict_neighbors": Row("written", "--predict_neighbors=1", FOLDER),
    },
    "embed": {
        "seed": Row("evaluated", "--seed=1", f"{HALF} --embed_split=train"),
        **PLACE, **EVALUATED, **READ, **of_csv("evaluated"),
        "eval_data_csv": Row(
            "evaluated", "--eval_data_csv={other_csv}", "--eval_dataset=csv --eval_data_csv={csv}"
        ),
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "eval_dataset": Row("evaluated", "--eval_dataset=folder --eval_data_dir={folder}"),
        "eval_data_dir": Row("evaluated", "--eval_data_dir={folder}"),
        "eval_split": Row("evaluated", "--eval_split=train"),
        "embed_split": Row("evaluated", "--embed_split=train"),
        "embed_dir": Row("evaluated", "--embed_dir={folder}"),
    },
    "export": {},
    "report": {
        "seed": Row("evaluated", "--seed=1", f"{HALF} --eval_split=train"),
        **PLACE, **EVALUATED, **READ, **of_csv("evaluated"),
        "eval_data_csv": Row(
            "evaluated", "--eval_data_csv={other_csv}", "--eval_dataset=csv --eval_data_csv={csv}"
        ),
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "eval_dataset": Row("evaluated", "--eval_dataset=folder --eval_data_dir={folder}"),
        "eval_data_dir": Row("evaluated", "--eval_data_dir={folder}"),
        "eval_split": Row("evaluated", "--eval_split=train"),
        # test_report.py shows what the page says about the other runs.
        "compare": Row("refused", "--compare={empty}"),
    },
    "preview": {
        **PLACE, **READ, **BATCHES,
        **augmentation(""),
        "image_size": Row("batch", "--image_size=10"),
        "num_views": Row("batch", "--num_views=3"),
        "preview_examples": Row("written", "--preview_examples=2"),
    },
    "inspect": {
        "seed": Row("said", "--seed=1", HALF),
        **PLACE, **EVALUATED, **of_csv("evaluated"),
        **{name: row for name, row in READ.items() if name in (
            "max_image_megapixels", "validation_split", "train_split", "test_split",
        )},
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "label_noise_prob": Row("written", "--label_noise_prob=0.9", FOLDER),
        "inspect_features": Row("written", "--inspect_features=pixels", FOLDER),
    },
    "robustness": {
        "seed": Row("evaluated", "--seed=1", f"{HALF} --eval_split=train"),
        **PLACE, **EVALUATED, **READ, **of_csv("evaluated"),
        "eval_data_csv": Row(
            "evaluated", "--eval_data_csv={other_csv}", "--eval_dataset=csv --eval_data_csv={csv}"
        ),
        "dataset": Row("evaluated", FOLDER),
        "data_dir": Row("evaluated", "--data_dir={other_folder}", FOLDER),
        "eval_dataset": Row("evaluated", "--eval_dataset=folder --eval_data_dir={folder}"),
        "eval_data_dir": Row("evaluated", "--eval_data_dir={folder}"),
        "eval_split": Row("evaluated", "--eval_split=train"),
        "robustness_examples": Row("evaluated", "--robustness_examples=4"),
        "robustness_workers": Row("processes", "--robustness_workers=3"),
        "robustness_baseline": Row("written", "--robustness_baseline=alexnet", FOLDER),
    },
}  # fmt: skip


def asks(stage, flag, row):
    """Of a batch, stages other than pretraining show what they ask of the pipeline.

    The rows of pretraining show that the pipeline makes another batch of it.
    """
    of_pretraining = ROWS["pretrain"].get(flag.removeprefix(f"{stage}_"))
    is_same = row.shows == "batch" and of_pretraining and of_pretraining.shows == "batch"
    return row._replace(shows="asked") if is_same and stage != "pretrain" else row


ROWS = {
    stage: {flag: asks(stage, flag, row) for flag, row in rows.items()}
    for stage, rows in ROWS.items()
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of images and of trained models, by the names that the rows use."""
    root = tmp_path_factory.mktemp("places")
    images = {"classes": ("0", "1"), "count": 8}
    write_images(root / "folder", **images, size=12)
    write_images(root / "other_folder", classes=("1", "0"), count=8, size=20)
    for split in ("train", "test"):
        for index, noise in enumerate(np.random.default_rng(0).integers(0, 256, [16, 80, 80, 3])):
            path = root / f"jpegs/{split}/{index % 2}/{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.astype(np.uint8)).save(path)
    broken = write_images(root / "broken", **images, size=12)
    (broken / "train/0/0.png").write_text("not an image")
    for name, flipped in (("csv", 0), ("other_csv", 1)):
        lines = ["filename,label,other,split"] + [
            f"folder/{split}/{label}/{index}.png,{label ^ flipped},{index % 2},{split}"
            for split in ("train", "test") for label in (0, 1) for index in range(8)
        ]  # fmt: skip
        (root / name).write_text("\n".join(lines))
    header = "file,split,kind,score,other_file,evidence,confirmed"
    rows = [
        f"{root}/folder/train/{label}/{index}.png,train,{kind},1,,,{confirmed}"
        for label, index, kind, confirmed in ((0, 1, "mislabeled", "yes"), (1, 2, "leak", ""))
    ]
    (root / "issues").write_text("\n".join([header, *rows]))
    prepared_tfds.write_two_greys(root / "tfds")
    write_trained(root / "trained")
    other = write_trained(root / "other_trained").encoder
    other.set_weights([2 * weight for weight in other.get_weights()])
    other.save(root / "other_trained/pretrain/encoder.keras")
    shutil.copytree(root / "trained", root / "incomplete")
    features = keras.Input([64])
    without_bias = keras.layers.Dense(10, use_bias=False, name="logits")(features)
    head = keras.Model(features, without_bias, name="linear_head")
    encoder = keras.models.load_model(root / "trained/pretrain/encoder.keras")
    classifier = contrastive.create_classifier(encoder, head)
    classifier.save(root / "incomplete/linear/classifier.keras")
    encoder = keras.models.load_model(root / "trained/pretrain/encoder.keras")
    projector = contrastive.create_projector(
        contrastive.ContrastiveModel(
            encoder, contrastive.ProjectionHead([8, 4], name="projection_head")
        )
    )
    projector.set_weights([weight + 0.5 for weight in projector.get_weights()])
    shutil.copytree(root / "trained", root / "biased")
    projector.save(root / "biased/pretrain/projection_head.keras")
    (root / "pretrained").mkdir()
    shutil.copytree(root / "trained/pretrain", root / "pretrained/pretrain")
    return root


@pytest.fixture(scope="module")
def see(places, tmp_path_factory):
    """(stage, flags, until) -> the observations; the same flags are run once."""
    one_corruption = mock.patch.object(corruptions, "CORRUPTIONS", ("contrast",))

    @functools.cache
    def see_once(stage, arguments, until):
        model_dir = tmp_path_factory.mktemp(stage)
        if stage in ("linear", "finetune"):
            shutil.copytree(places / "pretrained", model_dir, dirs_exist_ok=True)
        elif stage in ("eval", "predict", "embed", "export", "report", "inspect", "robustness"):
            shutil.copytree(places / "trained", model_dir, dirs_exist_ok=True)
        empty = tmp_path_factory.mktemp("empty")
        names = {name: places / name for name in (
            "folder", "other_folder", "broken", "trained", "other_trained", "incomplete", "biased",
            "csv", "other_csv", "tfds", "issues", "jpegs",
        )}  # fmt: skip
        given = [argument.format(empty=empty, **names) for argument in arguments.split()]
        common = [
            argument.format(**names)
            for argument in STAGE[stage]
            if not (argument == "--strategy=one_device" and "--strategy=" in arguments)
        ]
        command = (f"--mode={stage}", f"--model_dir={model_dir}", *common, *given)
        if until == "written":
            run_inside(*command)
            return {"written": written(model_dir / stage)}
        return observe(*command, until=until)

    with one_corruption:
        yield see_once


def written(folder):
    if folder.name == "preview":
        return np.asarray(Image.open(folder / "preview.png")).shape
    names = {
        "predict": "predictions.csv", "inspect": "issues.csv", "robustness": "robustness.json",
    }  # fmt: skip
    name = names.get(folder.name, "eval.json")
    return (folder / name).read_text()


OWN = ("linear_", "finetune_", "eval_")


def cases():
    """Every row; those of a flag that another stage shows too, and that take long, are slow."""
    for stage, rows in ROWS.items():
        for flag, row in rows.items():
            is_own = flag.startswith(OWN)
            is_quick = row.shows in (*START, *SETTINGS) and row.shows not in ("refused", "said")
            only_here = flag in ("zero_initialize_classifier", "label_smoothing")
            is_plain = is_quick or is_own or (only_here and stage == "linear")
            marks = () if is_plain else pytest.mark.slow
            yield pytest.param(stage, flag, marks=marks, id=f"{stage}-{flag}")


def change_of(stage, row):
    """The flags to change. Settings that are seen one by one are all changed in one run."""
    if row.shows in SETTINGS and row.shows != "rates" and not row.base:
        rows = ROWS[stage].values()
        return " ".join(x.change for x in rows if x.shows in SETTINGS[1:] and not x.base)
    return row.change


@pytest.mark.parametrize("stage,flag", list(cases()))
def test_the_flag_changes_what_its_row_says(stage, flag, see):
    row = ROWS[stage][flag]
    assert f"--{flag}=" in f"{row.change}=".replace(" ", "= ") or f"--no{flag}" in row.change
    # All settings are seen in one run, which the rows of the stage share.
    until = "rates" if row.shows in SETTINGS else row.shows
    base = see(stage, row.base, until)
    changed = see(stage, f"{row.base} {change_of(stage, row)}".strip(), until)
    assert row.shows in {**base, **changed}, base
    if row.shows in SETTINGS:  # Else a run that is refused would count as a change.
        assert row.shows in base and row.shows in changed, (base, changed)
    assert base.get(row.shows) != changed.get(row.shows)
    earlier = STEP[1 : STEP.index(row.shows)] if row.shows in STEP else ()
    for name in earlier:
        assert base[name] == changed[name], name


@pytest.mark.parametrize("stage", declare.STAGES)
def test_every_flag_of_a_stage_has_a_row(stage):
    listed = {flag.name for flag in declare.declared_flags() if stage in flag.stages}
    assert set(ROWS[stage]) == listed

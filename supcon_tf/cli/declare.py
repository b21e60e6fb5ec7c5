"""How a flag is declared: once, with everything that follows from it.

To add a flag, call `define` in the file of its subject (`run_flags.py`, `data_flags.py`,
`augmentation_flags.py`, `model_flags.py`, `loss_flags.py`, `training_flags.py`,
`output_flags.py`), then read it in the stages that it names as `flags.temperature`:

    define(
        "temperature",
        Number(at_least=1e-4, at_most=1e4),
        default=0.1,
        stages=("pretrain",),
        group="Loss",
        help="Temperature that divides the similarities in the contrastive loss.",
        paper="0.1 (Section 4.4)",
    )

From the declarations follow: the flags that `stage.flags` records and that a resumed stage is
compared with, the flags that later stages take from a run, `--help`, `--helpfull` and
`docs/flags.md` (run `python -m supcon_tf.cli.flags_page > docs/flags.md` after a change). A rule
between several flags belongs in one of the `*_rules.py` files.

Importing this module imports no TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from supcon_tf.cli.flag_types import Boolean, Enum, NameList

# The stages of --mode in the order in which a run usually takes them, with what each does.
STAGES = {
    "pretrain": "Train the encoder with the contrastive loss.",
    "linear": "Train a linear classifier on the frozen encoder's embeddings.",
    "finetune": "Train the encoder and a classifier with cross-entropy.",
    "eval": "Measure accuracy on the test split and write eval/eval.json.",
    "predict": "Predict the classes of a folder of images and list similar training images.",
    "embed": "Write the embeddings of a test split or of a folder of images.",
    "export": "Write a SavedModel that maps images to embeddings and logits.",
    "report": "Write one HTML page with the curves, results, mistakes and maps of the run.",
    "preview": "Draw augmented training images, to check the augmentation.",
    "robustness": "Measure the classifier on corrupted test images.",
    "inspect": "List wrong labels, duplicates, leaks and outliers in the data.",
}
TRAINING_STAGES = ("pretrain", "linear", "finetune")
# Every stage that reads images.
IMAGE_STAGES = (
    "pretrain", "linear", "finetune", "eval", "predict", "embed", "report", "preview", "inspect",
    "robustness",
)  # fmt: skip
# The stages that evaluate the encoder or a classifier on whole images.
EVALUATING_STAGES = (
    "pretrain", "linear", "finetune", "eval", "predict", "embed", "report", "inspect",
    "robustness",
)  # fmt: skip
# The stages that make augmented training batches.
BATCH_STAGES = ("pretrain", "linear", "finetune", "preview")
# The subjects of the help, in its order.
GROUPS = (
    "Run", "Data", "Augmentation", "Encoder and head", "Loss", "Pretraining", "Linear stage",
    "Fine-tuning", "All training stages", "Starting weights", "Evaluation and embeddings",
    "Checkpoints and logs", "Devices and speed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """One flag.

    Attributes:
        name: without the leading dashes.
        kind: its type, one of `flag_types`.
        default: a value of that type, or its text; None for no value.
        unset_means: what applies if the default is None and nobody sets the flag.
        stages: the stages whose result or execution it decides; empty if it decides the run.
        group: its subject, one of `GROUPS`.
        help: what it is and when to change it. The first sentence stands alone in --help.
        unit: of the value, such as "steps" or "pixels".
        changes_result: False if it only decides where, how fast or how often something happens.
            Such a flag may differ when a stage resumes, and later stages do not take it from a run.
        is_location: True if it only says where the data is. It may differ when a stage resumes,
            because the data itself is compared.
        decides_fitted_linear: whether it decides a linear classifier that is fitted by L-BFGS.
        paper: the value in Khosla et al. 2020 with its section or table, or in the code that the
            authors released.
        common: whether --help lists it; --helpfull lists every flag.
    """

    name: str
    kind: flags.ArgumentParser
    default: Any
    stages: tuple[str, ...]
    group: str
    help: str
    unset_means: str | None = None
    unit: str | None = None
    changes_result: bool = True
    is_location: bool = False
    decides_fitted_linear: bool = False
    paper: str | None = None
    common: bool = False

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"--{self.name}: group={self.group!r} is not one of {GROUPS}.")
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"--{self.name}: {stage!r} is not one of {tuple(STAGES)}.")

    @property
    def may_change_on_resume(self) -> bool:
        """Whether a stage resumes although this flag differs from the saved one."""
        return not self.stages or not self.changes_result or self.is_location

    def add_to(self, flag_values: flags.FlagValues) -> None:
        """Defines the flag in absl's `flag_values`."""
        flag: flags.Flag
        if isinstance(self.kind, Boolean):
            flag = flags.BooleanFlag(self.name, self.default, self.help)
        elif isinstance(self.kind, Enum):
            flag = flags.EnumFlag(self.name, self.default, self.help, self.kind.enum_values)
        else:
            is_names = isinstance(self.kind, NameList)
            serializer = flags.CsvListSerializer(",") if is_names else flags.ArgumentSerializer()
            flag = flags.Flag(self.kind, serializer, self.name, self.default, self.help)
        flags.DEFINE_flag(flag, flag_values)


_declared: dict[str, Declaration] = {}


def define(
    name: str,
    kind: flags.ArgumentParser,
    *,
    default: Any,
    stages: Sequence[str],
    group: str,
    help: str,
    unset_means: str | None = None,
    unit: str | None = None,
    changes_result: bool = True,
    is_location: bool = False,
    decides_fitted_linear: bool = False,
    paper: str | None = None,
    common: bool = False,
) -> None:
    """Declares one flag; the arguments are those of `Declaration`.

    Raises:
        ValueError: the name is taken, or there is no such group or stage.
    """
    if name in _declared:
        raise ValueError(f"--{name} is declared twice.")
    _declared[name] = Declaration(
        name=name,
        kind=kind,
        default=default,
        stages=tuple(stages),
        group=group,
        help=help,
        unset_means=unset_means,
        unit=unit,
        changes_result=changes_result,
        is_location=is_location,
        decides_fitted_linear=decides_fitted_linear,
        paper=paper,
        common=common,
    )


def declared_flags() -> list[Declaration]:
    """Every flag that is declared so far, by group and then in the order of declaration."""
    return sorted(_declared.values(), key=lambda flag: GROUPS.index(flag.group))

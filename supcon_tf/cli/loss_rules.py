"""The rules between the options of the supervised contrastive loss and the labels."""

from __future__ import annotations

from absl import flags

from supcon_tf.cli.rules import register_rule
from supcon_tf.losses.options import LOSS_VARIANTS, SupConOptions

# The options that may exclude each other, which are flags of the same names.
OPTIONS = (
    "denominator_mode", "summation_location", "positives_cap", "epsilon", "pair_weights",
    "spread_weight", "denominator_weighting",
)  # fmt: skip
# The flag that says how --dataset=csv reads labels of the form that the weights need.
LABEL_TYPE_OF = {"jaccard": "multi_label", "hierarchy": "hierarchy", "gaussian": "real"}


def define_loss_rules() -> None:
    """Registers the rules in absl; `flag_rules.define_rules` calls it."""
    register_rule([*OPTIONS], _check_options)
    register_rule(
        ["use_labels", "pair_weights", "spread_weight", "denominator_weighting"], _check_uses_labels
    )
    register_rule(["spread_weight", "num_views"], _check_spread)
    register_rule(["pair_weights", "dataset", "label_type"], _check_labels_of_weights)
    register_rule(["gaussian_bandwidth", "pair_weights"], _check_bandwidth)


def flags_of_variant(given: flags.FlagValues) -> list[str]:
    """Returns the flags that --loss_variant sets and that are not given; prints all of them.

    Raises:
        flags.ValidationError: A flag is given with another value.
    """
    variant = given.loss_variant
    if variant is None:
        return []
    added, shown = [], []
    for name, value in LOSS_VARIANTS[variant].items():
        as_flag = (
            f"--{'' if value else 'no'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        )
        if given[name].present and given[name].value != value:
            raise flags.ValidationError(
                f"--loss_variant={variant} means {as_flag}, but {given[name].serialize()} is given "
                "too. Leave one out."
            )
        shown.append(as_flag)
        if value != given[name].default:
            added.append(as_flag)
    print(f"--loss_variant={variant}: {' '.join(shown)}")
    return added


def _check_options(values):
    try:
        SupConOptions(**values)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


def _check_uses_labels(values):
    if values.pop("use_labels"):
        return True
    for name, value in values.items():
        if value != flags.FLAGS[name].default:
            raise flags.ValidationError(
                f"{name}={value} compares the labels of images, which --nouse_labels does not "
                "use. Leave one of them out."
            )
    return True


def _check_spread(values):
    if values["spread_weight"] and values["num_views"] == 1:
        raise flags.ValidationError(
            f"spread_weight={values['spread_weight']:g} contrasts the other views of an image with "
            "its class, but num_views=1. Use --num_views=2."
        )
    return True


def _check_labels_of_weights(values):
    weights, label_type = values["pair_weights"], values["label_type"]
    needed = LABEL_TYPE_OF.get(weights, label_type)
    is_stream = values["dataset"] not in ("digits", "folder", "csv")
    if needed == label_type or (needed == "multi_label" and is_stream):
        return True
    raise flags.ValidationError(
        f"pair_weights={weights} needs labels of another kind: --dataset=csv with "
        f"--label_type={needed}. These are --dataset={values['dataset']} "
        f"--label_type={label_type}."
    )


def _check_bandwidth(values):
    if values["gaussian_bandwidth"] is not None and values["pair_weights"] != "gaussian":
        raise flags.ValidationError(
            f"gaussian_bandwidth={values['gaussian_bandwidth']:g} has no effect without "
            "--pair_weights=gaussian. Add it, or leave this out."
        )
    return True

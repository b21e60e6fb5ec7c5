"""The flags of what is done with a trained encoder: evaluation and embeddings."""

from __future__ import annotations

from absl import flags

from supcon_tf.cli.flag_types import Integer, Text, define


def define_output_flags():
    define(
        "eval_train_examples",
        Integer(at_least=0),
        10_000,
        "For --mode=eval: how many training examples, spread over the split, k-NN and logistic "
        "regression on the frozen embeddings learn from. 0: leave the two out.",
    )
    define(
        "eval_dataset",
        Text(),
        None,
        "For --mode=eval and --mode=embed: evaluate this dataset instead of the one that the run "
        "was trained on. Takes the same values as --dataset. Classes are matched by name. "
        "Default: the dataset of the run, or folder if --eval_data_dir is given.",
    )
    define(
        "eval_data_dir",
        Text(),
        None,
        "For --mode=eval and --mode=embed: the directory of --eval_dataset, laid out as described "
        "for --data_dir.",
    )
    flags.DEFINE_enum(
        "eval_split",
        None,
        ["train", "test"],
        "For --mode=eval and --mode=embed: which split to evaluate. Default: test.",
    )
    flags.DEFINE_enum(
        "embed_split",
        None,
        ["train", "test"],
        "For --mode=embed: which split of --dataset. Default: test.",
    )
    define(
        "embed_dir",
        Text(),
        None,
        "For --mode=embed: a folder of JPEG and PNG files without labels, at any depth, instead "
        "of --dataset.",
    )

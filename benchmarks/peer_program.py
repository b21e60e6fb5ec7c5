"""The arguments and the k-NN evaluation of the programs that the command is compared with."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

NUM_NEIGHBORS, TEMPERATURE, BLOCK_ROWS = 20, 0.07, 512


def argument_parser(description):
    """The arguments that time_to_accuracy.py gives to each program."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser


def knn_accuracy(train_embeddings, train_labels, test_embeddings, test_labels):
    """Accuracy of a vote of the nearest training embeddings, weighted by exp(cosine / temperature).

    The same as `supcon_tf.evaluation.metrics.knn_accuracy`.

    Args:
        train_embeddings, test_embeddings: float [M, F], of any norm.
        train_labels, test_labels: int [M].
    """
    train, test = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in (train_embeddings, test_embeddings)
    )
    hits = 0
    for start in range(0, len(test), BLOCK_ROWS):
        block, labels = (rows[start : start + BLOCK_ROWS] for rows in (test, test_labels))
        similarities = block @ train.T
        nearest = np.argpartition(-similarities, NUM_NEIGHBORS - 1, axis=1)[:, :NUM_NEIGHBORS]
        weights = np.exp(np.take_along_axis(similarities, nearest, axis=1) / TEMPERATURE)
        votes = np.zeros([len(block), int(train_labels.max()) + 1])
        np.add.at(votes, (np.arange(len(block))[:, None], train_labels[nearest]), weights)
        hits += int(np.sum(votes.argmax(axis=1) == labels))
    return hits / len(test)

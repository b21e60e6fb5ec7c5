"""Makes tests/helpers/retrieval_numbers.npz: what pytorch-metric-learning's calculator gives.

Not a test. It ran once, in a separate environment, with pytorch-metric-learning 2.9.0, torch
2.14.1, scikit-learn 1.9.1 and numpy 2.4.6 on Python 3.11:

    python -m venv torch_metrics
    torch_metrics/bin/pip install torch==2.14.1 pytorch-metric-learning==2.9.0
    torch_metrics/bin/python tests/helpers/make_retrieval_numbers.py

recall@k is not among its figures; `precision_at_1` is recall@1.
"""

import pathlib

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

FIGURES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


def shares_a_class(labels, others):
    return (labels * others).sum(-1) > 0


def figures(*sets, multi_hot=False):
    calculator = AccuracyCalculator(
        include=FIGURES,
        k=None,  # All of the reference set.
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
        label_comparison_fn=shares_a_class if multi_hot else None,
    )
    found = calculator.get_accuracy(*sets)
    return np.array([found[name] for name in FIGURES])


random = np.random.default_rng(0)
centers = random.normal(size=(6, 8))
# Classes of 1 to 40 examples: the single example of class 5 is left out.
labels = np.repeat(np.arange(6), [40, 30, 20, 10, 4, 1])
embeddings = (centers[labels] + 2 * random.normal(size=(len(labels), 8))).astype(np.float32)
# Class 3 has no reference example, class 7 no query.
reference_labels = np.repeat([0, 1, 2, 4, 5, 7], [5, 10, 20, 30, 2, 10])
reference_centers = np.concatenate([centers, random.normal(size=(2, 8))])
reference = reference_centers[reference_labels] + 2 * random.normal(size=(77, 8))
reference = reference.astype(np.float32)
multi_hot = random.random((60, 7)) < 0.2  # Some without any class.
multi_hot[0] = [False] * 6 + [True]  # The only member of its class.
multi_hot[1:, 6] = False
multi_hot_embeddings = (multi_hot @ random.normal(size=(7, 8))).astype(np.float32)
multi_hot_embeddings += random.normal(size=(60, 8)).astype(np.float32)
np.savez_compressed(
    pathlib.Path(__file__).with_name("retrieval_numbers.npz"),
    embeddings=embeddings,
    labels=labels,
    reference=reference,
    reference_labels=reference_labels,
    multi_hot_embeddings=multi_hot_embeddings,
    multi_hot=multi_hot,
    against_itself=figures(embeddings, labels),
    against_reference=figures(embeddings, labels, reference, reference_labels),
    multi_hot_against_itself=figures(multi_hot_embeddings, multi_hot, multi_hot=True),
)

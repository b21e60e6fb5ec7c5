"""Supervised Contrastive Learning (Khosla et al. 2020) for TensorFlow and Keras.

    views = supcon_tf.create_view_batches((images, labels), "simclr")
    model = supcon_tf.ContrastiveModel(supcon_tf.create_encoder("tiny", image_size=32))
    model.compile(optimizer="adam", loss=supcon_tf.SupConLoss())
    model.fit(views, steps_per_epoch=100)

    classifier = supcon_tf.SupConClassifier(epochs=30).fit(images, labels)

Estimator:   SupConClassifier, load_run
Losses:      SupConLoss, supcon_loss, NPairsLoss, npairs_loss, TripletLoss, triplet_loss,
             MaxMarginLoss, max_margin_loss, MomentumQueue, momentum_queue_loss, collapse_loss
Models:      ContrastiveModel, create_encoder, create_resnet, ProjectionHead,
             create_linear_head, create_classifier, load_supcontrast, load_supcontrast_head
Data:        create_view_batches, create_policy
Training:    LARS, Momentum, WarmUpThenDecay, create_strategy, gather
Evaluation:  evaluate_classifier, evaluate_embeddings, inspect_run

`help(supcon_tf.SupConLoss)` explains one of them, `python -m supcon_tf.main --help` the command.
"""

# There is no __all__: with one, help(supcon_tf) prints every class with all that it inherits.
# The public names load on first use, so that `import supcon_tf` and `--help` stay quick.

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # For editors and type checkers; the same names as below.
    from supcon_tf.augment.policies import create_policy as create_policy
    from supcon_tf.collectives import gather as gather
    from supcon_tf.data.view_batches import create_view_batches as create_view_batches
    from supcon_tf.estimator import SupConClassifier as SupConClassifier
    from supcon_tf.evaluation.predictions import evaluate_classifier as evaluate_classifier
    from supcon_tf.evaluation.predictions import evaluate_embeddings as evaluate_embeddings
    from supcon_tf.interop.torch_weights import load_supcontrast as load_supcontrast
    from supcon_tf.interop.torch_weights import load_supcontrast_head as load_supcontrast_head
    from supcon_tf.losses.baselines import MaxMarginLoss as MaxMarginLoss
    from supcon_tf.losses.baselines import NPairsLoss as NPairsLoss
    from supcon_tf.losses.baselines import TripletLoss as TripletLoss
    from supcon_tf.losses.baselines import max_margin_loss as max_margin_loss
    from supcon_tf.losses.baselines import npairs_loss as npairs_loss
    from supcon_tf.losses.baselines import triplet_loss as triplet_loss
    from supcon_tf.losses.momentum_queue import MomentumQueue as MomentumQueue
    from supcon_tf.losses.momentum_queue import momentum_queue_loss as momentum_queue_loss
    from supcon_tf.losses.supcon import SupConLoss as SupConLoss
    from supcon_tf.losses.supcon import collapse_loss as collapse_loss
    from supcon_tf.losses.supcon import supcon_loss as supcon_loss
    from supcon_tf.models.contrastive import ContrastiveModel as ContrastiveModel
    from supcon_tf.models.contrastive import ProjectionHead as ProjectionHead
    from supcon_tf.models.contrastive import create_classifier as create_classifier
    from supcon_tf.models.contrastive import create_encoder as create_encoder
    from supcon_tf.models.contrastive import create_linear_head as create_linear_head
    from supcon_tf.models.resnet import create_resnet as create_resnet
    from supcon_tf.stages.inspect import inspect_run as inspect_run
    from supcon_tf.stages.loaded_run import load_run as load_run
    from supcon_tf.strategies import create_strategy as create_strategy
    from supcon_tf.training.optimizers import LARS as LARS
    from supcon_tf.training.optimizers import Momentum as Momentum
    from supcon_tf.training.optimizers import WarmUpThenDecay as WarmUpThenDecay

__version__ = "0.2.0"

_MODULE_OF = {
    "SupConClassifier": "estimator",
    "load_run": "stages.loaded_run",
    "inspect_run": "stages.inspect",
    "supcon_loss": "losses.supcon",
    "SupConLoss": "losses.supcon",
    "collapse_loss": "losses.supcon",
    "npairs_loss": "losses.baselines",
    "NPairsLoss": "losses.baselines",
    "triplet_loss": "losses.baselines",
    "TripletLoss": "losses.baselines",
    "max_margin_loss": "losses.baselines",
    "MaxMarginLoss": "losses.baselines",
    "momentum_queue_loss": "losses.momentum_queue",
    "MomentumQueue": "losses.momentum_queue",
    "ContrastiveModel": "models.contrastive",
    "ProjectionHead": "models.contrastive",
    "create_encoder": "models.contrastive",
    "create_linear_head": "models.contrastive",
    "create_classifier": "models.contrastive",
    "create_resnet": "models.resnet",
    "LARS": "training.optimizers",
    "Momentum": "training.optimizers",
    "WarmUpThenDecay": "training.optimizers",
    "create_policy": "augment.policies",
    "create_view_batches": "data.view_batches",
    "evaluate_classifier": "evaluation.predictions",
    "evaluate_embeddings": "evaluation.predictions",
    "load_supcontrast": "interop.torch_weights",
    "load_supcontrast_head": "interop.torch_weights",
    "create_strategy": "strategies",
    "gather": "collectives",
}


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'supcon_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"supcon_tf.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*_MODULE_OF, "__doc__", "__file__", "__name__", "__path__", "__version__"])

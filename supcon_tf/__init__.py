"""Supervised Contrastive Learning (Khosla et al. 2020) for TensorFlow and Keras.

    views = supcon_tf.create_view_batches((images, labels), "simclr")
    model = supcon_tf.ContrastiveModel(supcon_tf.create_encoder("tiny", image_size=32))
    model.compile(optimizer="adam", loss=supcon_tf.SupConLoss())
    model.fit(views, steps_per_epoch=100)

Losses:      SupConLoss, supcon_loss, NPairsLoss, npairs_loss, TripletLoss, triplet_loss,
             MaxMarginLoss, max_margin_loss, MomentumQueue, momentum_queue_loss, collapse_loss
Models:      ContrastiveModel, create_encoder, create_resnet, ProjectionHead,
             create_linear_head, create_classifier, load_supcontrast, load_supcontrast_head
Data:        create_view_batches, create_policy
Training:    LARS, Momentum, WarmUpThenDecay, create_strategy, gather
Evaluation:  evaluate_classifier, evaluate_embeddings

`help(supcon_tf.SupConLoss)` explains one of them, `python -m supcon_tf.main --help` the command.
"""

# There is no __all__: with one, help(supcon_tf) prints every class with all that it inherits.
# The public names load on first use, so that `import supcon_tf` and `--help` stay quick.

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # For editors and type checkers; the same names as below.
    from supcon_tf.distribute import create_strategy as create_strategy
    from supcon_tf.distribute import gather as gather
    from supcon_tf.evaluation import evaluate_classifier as evaluate_classifier
    from supcon_tf.evaluation import evaluate_embeddings as evaluate_embeddings
    from supcon_tf.losses import SupConLoss as SupConLoss
    from supcon_tf.losses import collapse_loss as collapse_loss
    from supcon_tf.losses import supcon_loss as supcon_loss
    from supcon_tf.models import ContrastiveModel as ContrastiveModel
    from supcon_tf.models import ProjectionHead as ProjectionHead
    from supcon_tf.models import create_classifier as create_classifier
    from supcon_tf.models import create_encoder as create_encoder
    from supcon_tf.models import create_linear_head as create_linear_head
    from supcon_tf.momentum_queue import MomentumQueue as MomentumQueue
    from supcon_tf.momentum_queue import momentum_queue_loss as momentum_queue_loss
    from supcon_tf.optimizers import LARS as LARS
    from supcon_tf.optimizers import Momentum as Momentum
    from supcon_tf.optimizers import WarmUpThenDecay as WarmUpThenDecay
    from supcon_tf.other_losses import MaxMarginLoss as MaxMarginLoss
    from supcon_tf.other_losses import NPairsLoss as NPairsLoss
    from supcon_tf.other_losses import TripletLoss as TripletLoss
    from supcon_tf.other_losses import max_margin_loss as max_margin_loss
    from supcon_tf.other_losses import npairs_loss as npairs_loss
    from supcon_tf.other_losses import triplet_loss as triplet_loss
    from supcon_tf.pipeline import create_view_batches as create_view_batches
    from supcon_tf.policies import create_policy as create_policy
    from supcon_tf.resnet import create_resnet as create_resnet
    from supcon_tf.torch_weights import load_supcontrast as load_supcontrast
    from supcon_tf.torch_weights import load_supcontrast_head as load_supcontrast_head

__version__ = "0.1.0"

_MODULE_OF = {
    "supcon_loss": "losses",
    "SupConLoss": "losses",
    "collapse_loss": "losses",
    "npairs_loss": "other_losses",
    "NPairsLoss": "other_losses",
    "triplet_loss": "other_losses",
    "TripletLoss": "other_losses",
    "max_margin_loss": "other_losses",
    "MaxMarginLoss": "other_losses",
    "momentum_queue_loss": "momentum_queue",
    "MomentumQueue": "momentum_queue",
    "ContrastiveModel": "models",
    "ProjectionHead": "models",
    "create_encoder": "models",
    "create_linear_head": "models",
    "create_classifier": "models",
    "create_resnet": "resnet",
    "LARS": "optimizers",
    "Momentum": "optimizers",
    "WarmUpThenDecay": "optimizers",
    "create_policy": "policies",
    "create_view_batches": "pipeline",
    "evaluate_classifier": "evaluation",
    "evaluate_embeddings": "evaluation",
    "load_supcontrast": "torch_weights",
    "load_supcontrast_head": "torch_weights",
    "create_strategy": "distribute",
    "gather": "distribute",
}


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'supcon_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"supcon_tf.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*_MODULE_OF, "__doc__", "__file__", "__name__", "__path__", "__version__"])

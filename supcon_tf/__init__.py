"""Supervised Contrastive Learning (Khosla et al. 2020) for TensorFlow and Keras.

The public names load on first use, so that `import supcon_tf` and `--help` stay quick.
"""

import importlib

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
__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'supcon_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"supcon_tf.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])

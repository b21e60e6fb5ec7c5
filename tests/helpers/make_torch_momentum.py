"""Writes tests/helpers/torch_momentum.npz: torch.optim.SGD under a changing learning rate.

    PYTHON_WITH_TORCH tests/helpers/make_torch_momentum.py

made the stored file with PyTorch 2.14.1. tests/test_momentum.py imports the problem and the
learning rates from here, which need NumPy alone, and compares
`supcon_tf.training.optimizers.Momentum` with the stored weights.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "torch_momentum.npz"
STEPS, WARMUP_STEPS, PEAK_LEARNING_RATE, WEIGHT_DECAY = 40, 10, 0.2, 0.01
SHAPE = (3, 4)


def learning_rates() -> dict[str, list[float]]:
    """One learning rate per step, for each schedule; warm-up from 0."""
    after = np.arange(STEPS) - WARMUP_STEPS
    warmup = PEAK_LEARNING_RATE * np.arange(STEPS) / WARMUP_STEPS
    cosine = PEAK_LEARNING_RATE * (1 + np.cos(np.pi * after / (STEPS - WARMUP_STEPS))) / 2
    step_down = np.where(np.arange(STEPS) < STEPS // 2, 1.0, 0.1) * PEAK_LEARNING_RATE
    rates = {
        "constant": np.full(STEPS, PEAK_LEARNING_RATE),
        "warm-up and cosine": np.where(after < 0, warmup, cosine),
        "a drop to a tenth": step_down,
        "warm-up, cosine and a drop": np.where(after < 0, warmup, cosine)
        * np.where(np.arange(STEPS) < 30, 1.0, 0.1),
    }
    return {name: [float(np.float32(rate)) for rate in values] for name, values in rates.items()}


def draw_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First weights [3, 4], curvatures [3, 4] and targets [steps, 3, 4], all float32.

    The gradient of a step is curvature * (w - target of the step): it depends on the weights, so
    a different update changes everything after it.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=SHAPE)
    curvatures = rng.uniform(0.1, 1.0, SHAPE)
    targets = 2.0 + rng.normal(size=(STEPS, *SHAPE))
    return tuple(array.astype(np.float32) for array in (weights, curvatures, targets))


def train_with_torch(rates, nesterov):
    """The weights after every step, float32 [steps, 3, 4]."""
    import torch

    start, curvatures, targets = (torch.tensor(array) for array in draw_problem())
    weights = torch.nn.Parameter(start)
    optimizer = torch.optim.SGD(
        [weights], lr=1.0, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=nesterov
    )
    history = []
    for rate, target in zip(rates, targets, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weights.grad = curvatures * (weights.detach() - target)
        optimizer.step()
        history.append(weights.detach().numpy().copy())
    return np.stack(history)


if __name__ == "__main__":
    stored = {}
    for name, rates in learning_rates().items():
        for nesterov in (False, True):
            stored[f"{name}, {'nesterov' if nesterov else 'momentum'}"] = train_with_torch(
                rates, nesterov
            )
    np.savez_compressed(PATH, **stored)

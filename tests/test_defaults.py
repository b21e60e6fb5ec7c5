"""What is chosen from the data where no flag says it: the epochs of pretraining."""

import pytest

from supcon_tf.data import defaults


@pytest.mark.parametrize(
    "num_examples,batch_size,expected",
    [
        (50_000, 64, 30),  # 23,437 steps: no floor is needed.
        (4_267, 64, 30),  # 30 epochs are 2,000 steps.
        (2_000, 64, 64),
        (2_000, 256, 240),  # 256 epochs would be 2,000 steps.
        (20, 8, 240),
    ],
)
def test_epochs_reach_the_floor_on_steps_within_a_limit(num_examples, batch_size, expected):
    epochs = defaults.pretrain_epochs("folder", num_examples, batch_size)
    assert epochs == expected
    steps = epochs * num_examples / batch_size
    assert steps >= defaults.MIN_STEPS or epochs == defaults.MAX_EPOCHS


def test_the_digits_keep_their_epochs():
    assert defaults.pretrain_epochs("digits", 1437, 64) == 30

"""`python -m supcon_tf`: the same as `python -m supcon_tf.main` and `supcon-tf`."""

from supcon_tf.main import run

run()

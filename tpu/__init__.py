"""Jobs for Cloud TPU, and the preflight: `python -m tpu.preflight` in the checkout."""

"""Predictions over a whole dataset, and the metrics computed from them."""

"""Encoders, heads and the contrastive model."""

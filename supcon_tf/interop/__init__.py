"""Weights from other runs and from other projects."""

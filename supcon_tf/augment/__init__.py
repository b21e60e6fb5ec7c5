"""Augmentation policies and their image operations."""

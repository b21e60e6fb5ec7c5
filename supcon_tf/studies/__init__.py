"""Experiments over the command, and the ledger of their results."""

"""What test files share: oracles, tiny data, runs of the command, other projects' numbers."""

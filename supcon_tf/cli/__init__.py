"""The command line: every flag, and the rules between flags."""

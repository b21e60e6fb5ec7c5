"""Files and artifacts that are written completely, recorded, and checked when read."""

"""Files and artefacts that are written whole, recorded and checked when read."""

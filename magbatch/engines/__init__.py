"""Engines: what turns a prompt into tokens. `base` is the seam; the others are behind it."""

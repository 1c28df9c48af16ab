"""Trained parameters in the place of the base's own: layers, norms, modules saved whole, rows of single tokens."""

"""Data files to examples that train. Knows nothing of models."""

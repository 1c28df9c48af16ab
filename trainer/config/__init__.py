"""The configuration of a training run: its keys, where it is read from, and the rules between keys."""

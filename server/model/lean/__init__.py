"""A forward of our own for decoders of the common shape: a plan read off the loaded model, and few calls a layer.

``trace`` runs the model once and writes down what its modules were given and gave; ``plan`` reads from that what the
model computes, and refuses what it does not understand; ``decoder`` computes a step by the plan; ``check`` holds it
against the model's own forward. Nothing here knows architectures by name.
"""

"""Kinds that change a module's activations: gains, biases, and small networks on its output."""

"""Kinds that rotate or reflect the features of a linear map, on its input or its output."""

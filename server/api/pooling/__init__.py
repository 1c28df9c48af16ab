"""Endpoints that answer with vectors, scores and classes in the place of text."""

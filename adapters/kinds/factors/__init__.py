"""Kinds whose update of a linear map is a product of factors of its own."""

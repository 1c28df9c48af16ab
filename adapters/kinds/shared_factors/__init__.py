"""Kinds whose modules share factors: random ones, a bank of vectors, a basis of the weights."""

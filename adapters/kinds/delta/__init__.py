"""Kinds that add a matrix to a linear map's weight which is no product of trained factors."""

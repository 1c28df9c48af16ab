"""Batches: the requests of a file, sent one by one behind all others, and their answers as files."""

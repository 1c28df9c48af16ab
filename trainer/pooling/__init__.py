"""Training of adapters that read texts: to classes, to numbers, or to vectors of texts that belong together.

Knows nothing of trl, of servers, or of how answers are scored: what scores them is handed in.
"""

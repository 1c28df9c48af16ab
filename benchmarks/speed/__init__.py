"""Speed of a whole server over HTTP: ours with adapters of every sort, and rivals beside it in the same run."""

"""What is served: names, their immutable versions, the packages on disk, and how that changes while requests run."""

"""Engines in a process or thread of their own, and how they are talked to."""

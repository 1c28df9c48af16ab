"""Outputs of conversations, taken apart while they come: thoughts, content, and calls of tools."""

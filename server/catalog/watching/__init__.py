"""Folders whose packages are served as they come: what appears or changes becomes a version, what goes is drained."""

from server.catalog.watching.watcher import Watcher

__all__ = ["Watcher"]

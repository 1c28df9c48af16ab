"""Adapter packages that are fetched: from a folder of this machine, the hub, a web server or an object store.

Only what the operator allows is looked at, everything lands in quarantine, and nothing found there is trusted: it is
checked as an upload is. Knows no HTTP API and no registry.
"""

from server.catalog.sources.errors import SourceError
from server.catalog.sources.sources import SourceRules, Sources, folders_of, shown

__all__ = ["SourceError", "SourceRules", "Sources", "folders_of", "shown"]

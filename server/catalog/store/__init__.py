"""Adapter packages where they are kept: uploads in quarantine, adopted ones on the disk or in an object store.

Names from outside never become paths. Every call blocks: run it off the event loop. Knows no registry and no catalog.
"""

from server.catalog.store.adapter_store import AdapterStore
from server.catalog.store.faults import disk_errors
from server.catalog.store.object_store import ObjectStore

__all__ = ["AdapterStore", "ObjectStore", "disk_errors"]

"""What Alembic runs: the steps, on the connection that it is given, in that connection's transaction."""

from __future__ import annotations

from alembic import context

from server.catalog.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()

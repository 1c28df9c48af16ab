"""Conversations: whose turn it is, and how far responses have read them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the columns."""
    op.add_column("answers", sa.Column("until", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("answers", sa.Column("turn", sa.String(32), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("answers", "turn")
    op.drop_column("answers", "until")

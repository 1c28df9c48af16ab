"""Items of conversations, found by these."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_answers_previous", "answers", ["previous", "number"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_answers_previous", "answers")

"""Everything that happens to a server in weeks, in minutes: its answers held against known ones, its leaks counted."""

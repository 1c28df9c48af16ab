"""The database of a catalog: its tables, how they came to be, and transactions that end as a whole or not at all."""

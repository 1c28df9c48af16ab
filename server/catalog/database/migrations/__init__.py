"""How the tables of a catalog came to be, one step a file."""

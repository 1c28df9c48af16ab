"""Ops executed over the rows of a mixed batch: ``reference`` is the specification, ``grouped`` the fast form."""

"""A server seen from outside: its HTTP client, uploads, and one of our own started on this machine."""

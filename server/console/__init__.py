"""The console: pages for operators that a browser reads from this server, and that ask its public API alone."""

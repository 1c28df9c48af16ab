"""Makes adapter packages: configuration, data, methods, training loop, export, publishing. Never imports the server."""

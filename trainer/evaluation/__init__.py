"""How well an adapter answers."""

"""The demo: trains, serves and hot-swaps adapters through the same commands and HTTP calls a user has."""

"""The one command. It dispatches lazily and knows nothing of serving or training itself."""

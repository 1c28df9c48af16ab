"""HTTP: OpenAI's API and the admin API."""

"""Serves a model over HTTP: OpenAI's completions API, for many requests at once."""

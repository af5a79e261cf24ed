"""A model as a web server: OpenAI's completions, many at once."""

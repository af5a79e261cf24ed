"""Exchanges models with other programs: folders of Hugging Face's transformers, and GGUF files."""

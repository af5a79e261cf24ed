"""Models to and from other programs: Hugging Face's folder, GGUF, Llama's names."""

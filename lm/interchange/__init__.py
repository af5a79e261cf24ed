"""Exchanges models with other programs: folders of Hugging Face's transformers, GGUF and safetensors files."""

"""A tokenizer's files: reading and writing its folder, and the formats of GPT-2 and Hugging Face."""

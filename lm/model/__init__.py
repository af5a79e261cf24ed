"""The Transformer and its loss, in pure torch: nothing here reads a file or knows of Lightning."""

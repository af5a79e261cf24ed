"""The Transformer and its loss, in pure torch: no file, no Lightning."""

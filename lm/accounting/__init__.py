"""Computes what a model costs before it runs: parameters, FLOPs, memory."""

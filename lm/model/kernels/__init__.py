"""Kernels of the fast path on a CPU: one pass over memory for what takes torch several; see fast_kernels.py."""

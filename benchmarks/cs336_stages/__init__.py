"""The stages of benchmarks/cs336.py: what it times, and how."""

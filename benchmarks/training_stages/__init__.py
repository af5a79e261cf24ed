"""What benchmarks/training.py trains: this package and others, and how their steps are timed."""

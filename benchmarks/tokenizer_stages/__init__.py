"""What benchmarks/tokenizer.py measures: texts and vocabularies, the libraries, and the measurements."""

"""What is wrong with a text before anyone trains on it: documents twice, validation text in training, odd documents.

    files -> reading.py -> batches of documents -> examining.py, in parallel -> findings.py -> `tokenization check`

A text is read once and only pieces of it are in memory. What is kept of a document has a fixed size (examining.py);
of a validation document also a hash of each run of words (spans.py).
"""

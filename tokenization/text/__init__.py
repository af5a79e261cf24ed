"""Reading text: files, folders and URLs, compressed or not, plain or as documents, in pieces that fit in memory.

text_files.py          which files the inputs name
places.py              opening a path or a URL
packing.py             decompressing
recognition.py         refusing what is not text
reading.py             one file as a stream of its text
documents.py, fields.py, parquet.py    files of many documents
corpus.py              all of them, as strings
"""

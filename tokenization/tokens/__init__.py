"""Token ids on the disk, which training reads.

token_format.py        the format: ids of 16 or 32 bits, and their description
token_file.py          writing and opening one token file
token_index.py, token_set.py    many token files as one
document_digests.py    whether two of them share documents
"""

"""Puts what a benchmark has measured into a document, between two comments that name the benchmark."""


def marks(script: str) -> tuple[str, str]:
    """Returns the comments before and after what a script of this folder has measured."""
    return f"<!-- measured by benchmarks/{script} -->", f"<!-- end of what benchmarks/{script} measured -->"


def into_document(made: str, document: str, script: str) -> str:
    """Returns a document with the script's tables between its marks; the tables alone where it has none."""
    begin, end = marks(script)
    made = made.rstrip("\n") + "\n"
    before, found, rest = document.partition(begin)
    _, ended, after = rest.partition(end)
    return f"{before}{begin}\n\n{made}\n{end}{after}" if found and ended else made

"""`lm test`: measures how well a model predicts a text or a token file, as a whole or document by document."""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lm.commands import add_device, add_run, new_parser
from lm.evaluation import Score, score_documents, score_file, split_documents, total
from lm.generation.quantization import round_weights
from lm.generation.writer import PRECISIONS
from lm.loading import TrainedModel, load
from lm.machine.resources import keep_large_blocks
from lm.model.fast import speed_up
from lm.model.fast_attention import choose_attention
from lm.model.transformer import TransformerLM
from lm.strict_json import to_json
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser, add_text_options
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_format import description_path
from tokenization.tokens.token_index import is_token_set

HELP = """Measure how well a trained model predicts a text: loss, perplexity and bits per byte.

  lm test checkpoints/demo data/demo/valid.bin
  lm test checkpoints/demo data/demo/valid.bin --per-document
  lm test checkpoints/demo data/demo/valid.bin --per-document --json > documents.jsonl
  lm test checkpoints/demo https://example.org/news.jsonl.gz --text-field body --per-document

A token file must be made by `tokenization encode` with the run's tokenizer. Any other file, folder or URL is text, and
is encoded first: anything that `tokenization encode` reads, one document per record of .jsonl or .parquet. The model
computes in float32, whatever it was trained in; --precision rounds its weights first. Bits per byte can be compared
across tokenizers; loss and perplexity cannot. Each <|endoftext|> counts as 13 bytes. By default the file is read in
adjacent windows that ignore documents; --per-document scores each document by itself, as lm-eval does.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm test`."""
    parser = new_parser("test", HELP)
    add_run(parser)
    parser.add_argument(
        "file", help="a token file (*.bin, or one with its .json beside it), a token set (*.tokens/), or a text"
    )
    add_text_options(parser)
    parser.add_argument(
        "--per-document", action="store_true", help="score each document by itself, and then all together"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON: one object, or one per line for each document and then for all"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="round the weights as lm generate does with this precision; int8 on a CPU only (default: fp32)",
    )
    add_device(parser)
    return parser


def run(argv: list[str]) -> None:
    """Scores the file, and prints the result."""
    args = make_parser().parse_args(argv)
    keep_large_blocks()
    trained = load(args.run, args.device, args.precision, finite=False)
    model, tokenizer = trained.model, trained.tokenizer
    round_weights(model, PRECISIONS[args.precision])
    speed_up(model, choose_attention(trained.device.type, model.context_length))
    with token_file(args.file, tokenizer, args.errors, args.text_field) as file:
        check(args.file, file, trained, 1 if args.per_document else 2)
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        if args.per_document:
            test_documents(model, tokenizer, file, args.file, args.json)
        else:
            print_total({"file": args.file}, score_file(model, tokenizer, file), args.json)
        del file  # Windows deletes no file that is mapped


@contextmanager
def token_file(name: str, tokenizer: Tokenizer, errors: str, text_field: str | None) -> Iterator[TokenFile]:
    """Yields the token file of this name, or one that is made of the text of this name and deleted in the end."""
    if name.endswith(".bin") or description_path(name).exists() or is_token_set(name):
        for option, value in (("text-field", text_field), ("errors", errors if errors != "strict" else None)):
            if value is not None:
                raise InputError(f"--{option} {value}: is for texts, and {name} is a token file; leave it out")
        yield TokenFile.open(name)
        return
    folder = tempfile.mkdtemp()
    try:
        yield tokenizer.encode_files(
            [name], Path(folder, "text.bin"), 1, errors, progress=sys.stderr.isatty(), text_field=text_field
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(name: str, file: TokenFile, trained: TrainedModel, fewest: int) -> None:
    """Raises InputError for a token file of another tokenizer, and for one with fewer tokens than can be predicted."""
    file.check_tokenizer(
        f"{trained.checkpoint}'s",
        trained.tokenizer.digest,
        f"encode the text with {trained.checkpoint.parent / 'tokenizer'}",
    )
    if len(file) < fewest:
        raise InputError(f"{name}: has one token, which leaves none to predict; use a longer text")


def test_documents(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile, name: str, as_json: bool) -> None:
    """Scores each document, and prints a line for each and for all together."""
    if tokenizer.end_of_text_id is None:
        raise InputError(f"--per-document: the tokenizer has no {END_OF_TEXT} to separate documents")
    documents = split_documents(np.asarray(file.tokens), tokenizer.end_of_text_id)
    if not documents:
        raise InputError(f"{name}: has no document, only {END_OF_TEXT}")
    scores = score_documents(model, tokenizer, documents, tokenizer.end_of_text_id)
    if not as_json:
        print("document     loss  bits/byte   tokens     bytes  begins")
    for number, (score, document) in enumerate(zip(scores, documents, strict=True), start=1):
        record, beginning = score.record(), tokenizer.decode(document[:20].tolist())
        if as_json:
            print(to_json({"document": number} | record | {"begins": beginning}, ensure_ascii=False))
        else:
            shown = f"{record['loss']:>8.4f} {record['bits_per_byte']:>10.4f} {score.tokens:>8,} {score.bytes:>9,}"
            print(f"{number:>8} {shown}  {' '.join(beginning.split())[:40]}")
    print_total({"file": name, "documents": len(scores)}, total(scores), as_json)


def print_total(about: dict[str, Any], score: Score, as_json: bool) -> None:
    """Prints the result of a whole file; then raises InputError if its loss is not finite."""
    record = score.record()
    documents = f"{about['documents']:,} documents, " if "documents" in about else ""
    if as_json:
        print(to_json(about | record))
    else:
        print(f"{about['file']}: {documents}{score.tokens:,} tokens predicted, {score.bytes:,} bytes")
        forms = {"loss": "{:.4f} nats a token", "perplexity": "{:.3f}"}
        for name, value in record.items():
            if name not in ("tokens", "bytes"):
                print(f"{name.replace('_', ' '):<14} {forms.get(name, '{:.4f}').format(value)}")
    if not math.isfinite(record["loss"]):
        raise InputError(f"the loss is {record['loss']}, which is not a result; `lm verify` checks the weights")

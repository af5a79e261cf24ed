"""`lm test`: how well a model predicts a text, as a whole or document by document."""

import math
import sys
from typing import Any

import numpy as np

from lm.commands import add_device, add_run, new_parser
from lm.evaluation import Score, score_documents, score_file, split_documents, total
from lm.loading import load
from lm.machine.resources import keep_large_blocks
from lm.model.fast import speed_up
from lm.model.fast_attention import choose_attention
from lm.model.transformer import TransformerLM
from lm.strict_json import to_json
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser
from tokenization.token_file import TokenFile

HELP = """How well a trained model predicts a text: loss, perplexity and bits per byte.

  lm test checkpoints/demo data/demo/valid.bin
  lm test checkpoints/demo data/demo/valid.bin --per-document
  lm test checkpoints/demo data/demo/valid.bin --per-document --json > documents.jsonl

The file is one that `tokenization encode` made with the run's tokenizer. The model computes in float32, whatever it was
trained in. Bits per byte can be compared across tokenizers, loss and perplexity cannot. A file as a whole is read in
windows side by side, whatever documents are in them; --per-document takes each document by itself, as lm-eval does.
"""


def make_parser() -> ArgumentParser:
    parser = new_parser("test", HELP)
    add_run(parser)
    parser.add_argument("file", help="a token file")
    parser.add_argument("--per-document", action="store_true", help="each document by itself, and all together")
    parser.add_argument("--json", action="store_true", help="an object; of documents one a line, and then all together")
    add_device(parser)
    return parser


def run(argv: list[str]) -> None:
    args = make_parser().parse_args(argv)
    keep_large_blocks()
    trained = load(args.run, args.device, finite=False)
    model, tokenizer = trained.model, trained.tokenizer
    speed_up(model, choose_attention(trained.device.type, model.context_length))
    file = TokenFile.open(args.file)
    if file.description.tokenizer_sha256 != tokenizer.digest:
        raise InputError(
            f"{file.path}: was made by another tokenizer than {trained.checkpoint} knows; encode the text with"
            f" {trained.checkpoint.parent / 'tokenizer'}"
        )
    if len(file) < 2:
        raise InputError(f"{file.path}: has one token, and none to be predicted from it; take more text")
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if args.per_document:
        test_documents(model, tokenizer, file, args.json)
        return
    print_total({"file": args.file}, score_file(model, tokenizer, file), args.json)


def test_documents(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile, as_json: bool) -> None:
    if tokenizer.end_of_text_id is None:
        raise InputError(f"--per-document: the tokenizer has no {END_OF_TEXT}, so nothing tells documents apart")
    documents = split_documents(np.asarray(file.tokens), tokenizer.end_of_text_id)
    if not documents:
        raise InputError(f"{file.path}: has no document, but {END_OF_TEXT} alone")
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
    print_total({"file": str(file.path), "documents": len(scores)}, total(scores), as_json)


def print_total(about: dict[str, Any], score: Score, as_json: bool) -> None:
    """Raises InputError, when all is printed, where the loss is not finite."""
    record = score.record()
    documents = f"{about['documents']:,} documents, " if "documents" in about else ""
    print(
        to_json(about | record)
        if as_json
        else f"{about['file']}: {documents}{score.tokens:,} tokens predicted, {score.bytes:,} bytes\n"
        f"loss           {record['loss']:.4f} nats a token\n"
        f"perplexity     {record['perplexity']:.3f}\n"
        f"bits per byte  {record['bits_per_byte']:.4f}"
    )
    if not math.isfinite(record["loss"]):
        raise InputError(f"the loss is {record['loss']}, which is no result; `lm verify` looks at the weights")

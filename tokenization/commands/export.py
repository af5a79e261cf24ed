"""`tokenization export`: write a tokenizer for other tools."""

from collections.abc import Sequence

from tokenization.commands import TOKENIZER_HELP, ArgumentParser, command_parser, output_path
from tokenization.interchange import decoded_otherwise, export_huggingface, export_tiktoken, is_huggingface, is_tiktoken
from tokenization.outputs import check_file
from tokenization.pretokenization import PATTERNS
from tokenization.tokenizer import Tokenizer

HELP = """Write a tokenizer for other tools: a file named *.tiktoken for tiktoken, any other for Hugging Face.

  tokenization export data/tokenizer --output tokenizer.json
  tokenization export data/tokenizer --output mine.tiktoken
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("export", HELP)
    parser.add_argument("tokenizer", help=TOKENIZER_HELP)
    parser.add_argument("--output", required=True, type=output_path, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of the same kind")
    return parser


def run(argv: Sequence[str]) -> None:
    """Exports a tokenizer and prints its size, and what the format loses."""
    args = make_parser().parse_args(argv)
    tiktoken = args.output.name.endswith(".tiktoken")
    kind, is_kind = ("a tiktoken file", is_tiktoken) if tiktoken else ("a tokenizer.json", is_huggingface)
    check_file(args.output, [args.tokenizer], kind, is_kind, args.overwrite)
    tokenizer = Tokenizer.load(args.tokenizer)
    count = (export_tiktoken if tiktoken else export_huggingface)(tokenizer, args.output)
    print(f"{count:,} tokens -> {args.output}")
    for line in [] if tiktoken else decoded_otherwise(tokenizer):
        print(line)
    if count < len(tokenizer.vocab):
        print(f"a .tiktoken file holds no special tokens, here {', '.join(map(repr, tokenizer.special_tokens))}")
    if tiktoken and tokenizer.pattern not in PATTERNS.values():
        print(f"tiktoken drops what lies between matches of its pattern, here {tokenizer.pattern!r}")

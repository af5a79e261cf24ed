"""`lm export`: writes a trained model in a format of other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from lm.commands import add_run, new_parser
from lm.interchange.gguf import export_gguf
from lm.interchange.huggingface import export_huggingface_folder
from lm.interchange.model_card import CARD, model_card
from lm.interchange.weights import export_safetensors, num_exported
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.runs.folder import refuse_names_of_runs
from tokenization import InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import making
from tokenization.interchange import decoded_otherwise
from tokenization.outputs import check_new


class Format(NamedTuple):
    """A format of other programs."""

    write: Callable[[TransformerLM, Tokenizer, Path, str], None]
    dtypes: tuple[str, ...]  # of the weights, for --dtype
    card: Callable[[TransformerLM, Tokenizer, Path, str], str] | None  # the text of a folder's model card
    examples: dict[str, str]  # for --help: the rest of a command line, and what it writes
    count: Callable[[TransformerLM], int] = num_exported  # of the numbers that are written


FORMATS = {
    "hf": Format(
        export_huggingface_folder,
        dtypes=("fp32", "bf16", "fp16"),
        card=model_card,
        examples={"--output exported/demo": "a folder for transformers, with a model card"},
    ),
    "gguf": Format(
        export_gguf,
        dtypes=("fp32", "fp16", "q8_0"),
        card=None,
        examples={
            "--output demo.gguf": "a file for llama.cpp",
            "--dtype q8_0 --output demo.gguf": "the same with 8-bit weights",
        },
    ),
    "safetensors": Format(
        export_safetensors,
        dtypes=("fp32", "bf16", "fp16"),
        card=None,
        examples={"--output demo.safetensors": "the weights under our own names"},
        count=TransformerLM.num_parameters,
    ),
}


EXAMPLES = {
    f"lm export checkpoints/demo --format {name} {arguments}": words
    for name, form in FORMATS.items()
    for arguments, words in form.examples.items()
}
WIDTH = max(map(len, EXAMPLES))
HELP = "Export a trained model for other programs.\n\n" + "".join(
    f"  {command:{WIDTH}} {words}\n" for command, words in EXAMPLES.items()
)


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm export`."""
    parser = new_parser("export", HELP)
    dtypes = "; ".join(f"for {name} {', '.join(form.dtypes)}" for name, form in FORMATS.items())
    add_run(parser)
    parser.add_argument("--format", choices=list(FORMATS), default="hf", help="format of the export (default: hf)")
    parser.add_argument("--output", required=True, type=output_path, help="a new folder or file, as shown above")
    parser.add_argument("--dtype", default="fp32", help=f"type of the weights: {dtypes} (default: fp32)")
    return parser


def run(argv: list[str]) -> None:
    """Exports the model and prints what was written."""
    args = make_parser().parse_args(argv)
    form = FORMATS[args.format]
    if args.dtype not in form.dtypes:
        raise InputError(f"--dtype {args.dtype}: with --format {args.format} it can be {', '.join(form.dtypes)}")
    check_new(args.output)
    checkpoint = find_checkpoint(args.run)
    refuse_names_of_runs([args.output], [checkpoint.parent])
    model = load_model(checkpoint)
    tokenizer = load_tokenizer(checkpoint, model.vocab_size)
    try:
        with making(args.output) as path:
            form.write(model, tokenizer, path, args.dtype)
            if form.card:
                (path / CARD).write_text(form.card(model, tokenizer, checkpoint, args.dtype), encoding="utf-8")
    except SafetensorError as error:  # what safetensors raises where it cannot write
        raise InputError(
            f"{args.output}: cannot be written ({error}); free some space, or choose another place"
        ) from None
    print(f"{checkpoint} -> {args.output}: {form.count(model):,} parameters, {args.dtype}")
    for line in decoded_otherwise(tokenizer) if args.format == "hf" else []:
        print(line)

"""`lm export`: writes a trained model in a format of other programs."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from lm.commands import add_run, new_parser
from lm.interchange.gguf import export_gguf
from lm.interchange.huggingface import export_huggingface_folder
from lm.interchange.llama import converted
from lm.interchange.model_card import CARD, model_card
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.runs.folder import refuse_names_of_runs
from tokenization import InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import making
from tokenization.outputs import check_new

HELP = """Export a trained model for other programs.

  lm export checkpoints/demo --format hf --output exported/demo             a folder for transformers, with a model card
  lm export checkpoints/demo --format gguf --output demo.gguf               a file for llama.cpp
  lm export checkpoints/demo --format gguf --dtype q8_0 --output demo.gguf  the same with 8-bit weights
  lm export checkpoints/demo --format safetensors --output demo.safetensors the weights under our own names
"""


def export_safetensors(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Writes the weights alone, under our own names."""
    save_file(converted(model.state_dict(), dtype), path)


FORMATS: dict[str, tuple[Callable[[TransformerLM, Tokenizer, Path, str], None], tuple[str, ...]]] = {
    "hf": (export_huggingface_folder, ("fp32", "bf16", "fp16")),
    "gguf": (export_gguf, ("fp32", "fp16", "q8_0")),
    "safetensors": (export_safetensors, ("fp32", "bf16", "fp16")),
}


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm export`."""
    parser = new_parser("export", HELP)
    add_run(parser)
    parser.add_argument("--format", choices=list(FORMATS), default="hf", help="format of the export (default: hf)")
    parser.add_argument("--output", required=True, type=output_path, help="a new folder for hf, otherwise a new file")
    parser.add_argument(
        "--dtype",
        default="fp32",
        help="type of the weights: fp32, bf16 or fp16; for gguf fp32, fp16 or q8_0 (default: fp32)",
    )
    return parser


def run(argv: list[str]) -> None:
    """Exports the model and prints what was written."""
    args = make_parser().parse_args(argv)
    write, dtypes = FORMATS[args.format]
    if args.dtype not in dtypes:
        raise InputError(f"--dtype {args.dtype}: with --format {args.format} it can be {', '.join(dtypes)}")
    check_new(args.output)
    checkpoint = find_checkpoint(args.run)
    refuse_names_of_runs([args.output], [checkpoint.parent])
    model = load_model(checkpoint)
    tokenizer = load_tokenizer(checkpoint, model.vocab_size)
    try:
        with making(args.output) as path:
            write(model, tokenizer, path, args.dtype)
            if args.format == "hf":
                (path / CARD).write_text(model_card(model, tokenizer, checkpoint, args.dtype), encoding="utf-8")
    except SafetensorError as error:  # what safetensors raises where it cannot write
        raise InputError(
            f"{args.output}: cannot be written ({error}); free some space, or choose another place"
        ) from None
    print(f"{checkpoint} -> {args.output}: {model.num_parameters():,} parameters, {args.dtype}")

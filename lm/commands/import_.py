"""`lm import`: imports a Hugging Face Llama as a run."""

from typing import Any

from lm.commands import named_path, new_parser
from lm.interchange.foreign import SETTINGS, read_json, shown
from lm.interchange.huggingface import read_llama, write_run
from lm.runs.folder import CONFIG, TOKENIZER
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import making
from tokenization.formats.folder import TOKENIZER_JSON
from tokenization.outputs import check_new

HELP = """Import a Hugging Face Llama as a run. Its folder has config.json, model.safetensors and tokenizer.json.

  lm import exported/demo --output checkpoints/again
  lm generate checkpoints/again --prompt "Once upon a time"

The tokenizer must be a byte-level BPE, and the model must not use grouped-query attention. Whatever is not supported
is refused by name. Nothing in the folder is executed, whoever wrote it. A YAML configuration is different: a class_path
imports and runs any module, so read a stranger's before you use it.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm import`."""
    parser = new_parser("import", HELP)
    parser.add_argument("folder", type=named_path, help="a folder from save_pretrained or `lm export --format hf`")
    parser.add_argument("--output", required=True, type=output_path, help="the run's folder, which must not exist yet")
    return parser


def run(argv: list[str]) -> None:
    """Imports the model, and prints what can be done with it."""
    args = make_parser().parse_args(argv)
    source, run = args.folder, args.output
    check_new(run)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; nothing is downloaded, so fetch the model first")
    settings, tokenizer, weights = read_llama(source)
    with making(run) as written:
        write_run(written, run, settings, tokenizer, weights)
    print(f"{source} -> {run}: {settings['num_layers']} layers of {settings['d_model']}, {tokenizer.vocab_size} tokens")
    print(how_texts_end(read_json(source / SETTINGS).get("eos_token_id"), tokenizer))
    if (source / TOKENIZER_JSON).is_file() and (line := become_special(read_json(source / TOKENIZER_JSON))):
        print(line)
    print(f"to train it further, encode text with {run / TOKENIZER}, then: lm fit -c {run / CONFIG}")
    print("a configuration is code (class_path imports and runs any module): never use a stranger's YAML unread")


def how_texts_end(eos_token_id: Any, tokenizer: Tokenizer) -> str:
    """Says which token ends a text of the imported model."""
    end = tokenizer.end_of_text_id
    if end is None:
        return f"its tokenizer has no {END_OF_TEXT}, so only --max-new-tokens ends a text"
    if eos_token_id in (end, [end], None):
        return f"texts end with {END_OF_TEXT}"
    return f"texts end with {END_OF_TEXT}, token {end}, not with the config's eos_token_id, {shown(eos_token_id)}"


def become_special(content: Any) -> str:
    """Says which added tokens of a tokenizer.json are special only from now on; "" if there are none."""
    names = [token["content"] for token in content.get("added_tokens") or [] if token.get("special") is False]
    if not names:
        return ""
    which = f"the added token {names[0][:40]!r} becomes" if len(names) == 1 else f"{len(names)} added tokens become"
    example = "" if len(names) == 1 else f" ({names[0][:40]!r} is one)"
    return f"{which} special{example}: programs that read an export of it may leave out such text"

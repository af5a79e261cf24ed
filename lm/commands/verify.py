"""`lm verify`: checks that checkpoints, and the tokenizer beside them, are byte for byte what was saved."""

import sys
from collections.abc import Iterator
from pathlib import Path

from lm.commands import named_path, new_parser
from lm.runs.checkpoint import verify
from lm.runs.folder import CONFIG, SHARDS
from lm.runs.newest import in_words
from tokenization import InputError
from tokenization.commands import ArgumentParser
from tokenization.files import file_sha256

HELP = """Check by their digests that checkpoints, and the tokenizer beside them, are byte for byte as they were saved.

  lm verify checkpoints/demo                  every checkpoint of a run
  lm verify checkpoints/demo/best.ckpt        one of them
"""
DIGESTS = ("tokenizer_sha256", "train_sha256", "val_sha256", "config_sha256")


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm verify`."""
    parser = new_parser("verify", HELP)
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=named_path,
        metavar="CKPT",
        help="a checkpoint, or a run's folder for all of its checkpoints",
    )
    return parser


def run(argv: list[str]) -> None:
    """Verifies the checkpoints and prints the findings; InputError at the end, if there is one that does not verify."""
    damaged: list[InputError] = []
    for path in make_parser().parse_args(argv).checkpoints:
        for checkpoint in (sorted(path.glob("*.ckpt")) if path.is_dir() else []) or [path]:
            try:
                lines = list(findings(checkpoint))
            except (InputError, OSError) as error:
                damaged.append(InputError(in_words(error, checkpoint)))
            else:
                print(*lines, sep="\n", flush=True)
    for found in damaged[:-1]:
        print(f"lm verify: {found}", file=sys.stderr)
    if damaged:
        raise damaged[-1]


def findings(checkpoint: Path) -> Iterator[str]:
    """Yields lines on what is known of a checkpoint; InputError if it does not verify."""
    manifest, config = verify(checkpoint), checkpoint.parent / CONFIG
    saved = manifest.get("config_sha256")
    if saved is None:
        about = "was not there when it was saved"
    elif not config.is_file():
        about = "is missing"
    else:
        about = "is the one it was saved with" if file_sha256(config) == saved else "is not the one it was saved with"
    shards = [checkpoint.parent / name for name in manifest.get(SHARDS, {})]
    size = sum(path.stat().st_size for path in (checkpoint, *shards))
    yield f"{checkpoint}: intact, step {manifest['step']:,}, {size:,} bytes" + (
        f" in {len(shards)} shard{'s' if len(shards) > 1 else ''}" if shards else ""
    )
    for name in DIGESTS:
        if manifest.get(name) is not None:
            yield f"  {name:18}{manifest[name]}"
    if manifest.get("train_sha256") is None:
        yield "  weights and a tokenizer alone, as `lm import` writes them: no training data is recorded"
    yield f"  {CONFIG} {about}"

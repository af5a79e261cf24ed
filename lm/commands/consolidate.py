"""`lm consolidate`: makes a single file of a sharded checkpoint."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from lm.commands import add_run, new_parser
from lm.runs.checkpoint import find_checkpoint, open_state, save_checkpoint
from lm.runs.folder import BEST, CONFIG, LAST, OWN_FILES, TOKENIZER, refuse_names_of_runs
from lm.runs.manifest import read_manifest, verify_tokenizer
from lm.runs.shards import put_rows
from tokenization import InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import delete_empty, making, missing_folders
from tokenization.outputs import check_new

HELP = """Merge a sharded checkpoint into a single file, as a run without --checkpoints.sharded saves it.

  lm consolidate checkpoints/demo/last.ckpt                               writes last-consolidated.ckpt beside it
  lm consolidate checkpoints/demo --output published/demo.ckpt            best.ckpt, with tokenizer and config.yaml

The file holds the whole state: it can be resumed from, on any number of devices, and every command reads it. Commands
read a sharded checkpoint, too, as long as the folder shards/ is beside it. The whole state must fit into memory.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm consolidate`."""
    parser = new_parser("consolidate", HELP)
    add_run(parser)
    parser.add_argument(
        "--output",
        type=output_path,
        help="a new file (default: NAME-consolidated.ckpt beside NAME.ckpt); in another folder the tokenizer and"
        " config.yaml are copied beside it",
    )
    return parser


def run(argv: list[str]) -> None:
    """Consolidates the checkpoint and prints what was written."""
    args = make_parser().parse_args(argv)
    path = find_checkpoint(args.run)
    output: Path = args.output or path.with_name(f"{path.stem}-consolidated.ckpt")
    check_new(output)
    refuse_names_of_runs([output], [path.parent], (BEST, LAST, *(name for name in OWN_FILES if name != "*.ckpt")))
    checkpoint, shards = open_state(path)
    if shards is None:
        raise InputError(f"{path}: is a single file already; copy it")
    verify_tokenizer(path, read_manifest(path))
    with tqdm(total=len(shards.digests) + 1, desc="reading", unit=" files", disable=None, delay=2) as bar:
        checkpoint = put_rows(checkpoint, shards.read(done=partial(bar.update, 1)))
        bar.set_description("writing")
        with surroundings(path.parent, output.parent):
            save_checkpoint(checkpoint, output)
        bar.update(1)
    number = len(shards.digests)
    size = f"{output.stat().st_size:,} bytes from {number} shard{'s' if number > 1 else ''}"
    print(f"{path} -> {output}: step {checkpoint['global_step']:,}, {size}")


@contextlib.contextmanager
def surroundings(run_folder: Path, folder: Path) -> Iterator[None]:
    """Copies what a checkpoint needs beside it, and takes it back if the block fails.

    InputError if the folder has another tokenizer or configuration.
    """
    here, there = run_folder / TOKENIZER, folder / TOKENIZER
    if os.path.lexists(there) and Tokenizer.load(there).digest != Tokenizer.load(here).digest:
        raise InputError(f"{there}: is not the run's tokenizer; choose another folder")
    here, there = run_folder / CONFIG, folder / CONFIG
    if os.path.lexists(there) and not (there.is_file() and here.is_file() and there.read_bytes() == here.read_bytes()):
        raise InputError(f"{there}: is not the run's configuration; choose another folder")
    copied = [
        name for name in (TOKENIZER, CONFIG) if (run_folder / name).exists() and not os.path.lexists(folder / name)
    ]
    new_folders = missing_folders([folder / name for name in copied])
    try:
        for name in copied:
            with making(folder / name) as made:
                copy(run_folder / name, made)
        yield
    except BaseException:
        for name in copied:
            shutil.rmtree(folder / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        delete_empty(new_folders)
        raise


def copy(source: Path, target: Path) -> None:
    """Copies a file, or a folder of files; shutil.copytree would collect errors that no one can read."""
    if source.is_dir():
        target.mkdir()
    for file in source.glob("[!.]*") if source.is_dir() else [source]:
        with open(file, "rb") as original, open(target / file.name if source.is_dir() else target, "wb") as made:
            shutil.copyfileobj(original, made)  # copyfile's error for a full disk names the original

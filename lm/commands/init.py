"""`lm init`: fills a folder with the configurations and sample stories that come with this package.

In a clone lm/starter has links to configs/ and data/; a wheel has the files themselves.
"""

import os
import shlex
from pathlib import Path

from lm.commands import new_parser
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import writing
from tokenization.outputs import check_folder

HELP = """Copy the configurations and the sample stories into a folder. Existing files are never changed.

  lm init work        into the folder work
  lm init             here
"""

STARTER = Path(__file__).parent.parent / "starter"

NEXT = """\
  tokenization train data/tinystories-train.txt.gz --vocab-size 2048 --output data/demo/tokenizer
  tokenization encode data/tinystories-train.txt.gz --tokenizer data/demo/tokenizer --output data/demo/train.bin
  tokenization encode data/tinystories-valid.txt.gz --tokenizer data/demo/tokenizer --output data/demo/valid.bin
  lm fit -c configs/demo.yaml
  lm generate checkpoints/demo --prompt "Once upon a time"
"""


def starter_files() -> list[str]:
    """Lists the files that a folder gets, by their paths in it."""
    paths = (Path(top, name) for top, _, names in os.walk(STARTER, followlinks=True) for name in names)
    return sorted(str(path.relative_to(STARTER)) for path in paths)


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm init`."""
    parser = new_parser("init", HELP)
    parser.add_argument(
        "folder", nargs="?", type=output_path, default=".", help="folder, created if missing (default: here)"
    )
    return parser


def run(argv: list[str]) -> None:
    """Copies the files, and prints the commands that come next."""
    folder = make_parser().parse_args(argv).folder
    names = starter_files()
    check_folder(folder, names=names)
    contents = {folder / name: (STARTER / name).read_bytes() for name in names}
    missing = {path: content for path, content in contents.items() if not path.exists()}
    for path in contents.keys() - missing.keys():
        if path.read_bytes() != contents[path]:
            raise InputError(f"{path}: already exists and differs; nothing was written. Name another folder")
    for path, content in missing.items():
        with writing(path) as file:
            file.write(content)
    print(f"{folder}: {len(missing)} files written, {len(contents) - len(missing)} already there. Next:\n")
    if folder.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(str(folder))}")
    print(NEXT, end="")

"""Guards the copy of the tokenizer in a run's folder while the run goes on."""

from pathlib import Path

from tokenization import InputError, Tokenizer
from tokenization.files import writing_together


class KeptTokenizer:
    """Keeps a run's copy of its tokenizer unchanged: checkpoints record the digests of its files."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.was_lost = False

    def keep(self, tokenizer: Tokenizer, folder: Path) -> None:
        """Saves the tokenizer into the folder, unless it is there already."""
        try:
            same = Tokenizer.load(folder).digest == tokenizer.digest
        except InputError:
            same = False
        if not same:
            tokenizer.save(folder)
        self.files = {path: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}

    def put_back(self) -> None:
        """Writes the files again, byte for byte, if any has been deleted or changed."""
        if all(path.is_file() and path.read_bytes() == content for path, content in self.files.items()):
            return
        self.was_lost = True
        with writing_together(*self.files) as files:
            for file, content in zip(files, self.files.values(), strict=True):
                file.write(content)
        print(f"{next(iter(self.files)).parent}: was deleted or changed during the run; restored")

"""What a user can put right: the message names the value, the file and the remedy in one line; commands exit with 2."""

import argparse
from typing import NoReturn


class InputError(ValueError):
    pass


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with a command line as everything else is said, and not below a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` lists what there is")

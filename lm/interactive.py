"""A conversation with a model in the terminal: one types, the model goes on, one types on.

All that was typed and written is one text. What a line means is in HELP; the seed moves on with every continuation, so
that the whole conversation can be had again.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from lm.generation import Text, Writer
from lm.pieces import TextStream
from lm.sampling import Sampling
from tokenization import END_OF_TEXT, InputError, Tokenizer

HELP = """Type how a text begins; the model goes on. What you type next is added as it stands, and it goes on from there
  (an empty line)     go on without a word of mine
  /new                forget the text, and begin another
  /again              take back what was written last, and write something else
  /temperature 0.5    also /top_k /top_p /min_p /repetition_penalty, /max_new_tokens 100, /seed 3
  /quit               or Ctrl-D; Ctrl-C stops a text that is being written
"""


class Conversation:
    def __init__(
        self,
        writer: Writer,
        tokenizer: Tokenizer,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        stops: Sequence[str],
    ):
        self.writer, self.tokenizer, self.sampling, self.stops = writer, tokenizer, sampling, stops
        self.seed, self.max_new_tokens = seed, max_new_tokens
        self.text, self.before = "", ""  # all of it; what it was before the model's last words

    def answer(self, line: str) -> bool:
        """Does what the line says; False ends the conversation."""
        command, *values = line.split() if line.startswith("/") else [""]
        if command in ("/quit", "/exit"):
            return False
        if command == "/help":
            print(HELP, end="")
        elif command == "/new":
            self.text = self.before = ""
        elif command == "/again":
            self.text = self.before
            print(self.text, end="")
            self.go_on()
        elif command:
            self.set(command[1:], values)
        else:
            self.text += line
            self.go_on()
        return True

    def set(self, name: str, values: list[str]) -> None:
        own, of_sampling = ("seed", "max_new_tokens"), [each.name for each in fields(Sampling)]
        if name not in (*own, *of_sampling) or len(values) != 1:
            names = ", /".join((*of_sampling, *own))
            raise InputError(f"/{' '.join([name, *values])}: there are /{names}, each with a number; and /help")
        try:
            value: Any = int(values[0]) if name in (*own, "top_k") else float(values[0])
        except ValueError:
            raise InputError(f"/{name} {values[0]}: is not a number that it can be") from None
        if name in of_sampling:
            self.sampling = replace(self.sampling, **{name: value})
            return
        least = 1 if name == "max_new_tokens" else 0
        if not least <= value < 1 << 62:
            raise InputError(f"/{name} {value}: it must be at least {least}, and below 2^62")
        setattr(self, name, value)

    def go_on(self) -> None:
        """Writes, on the terminal and into the text, until the model, a stop string or Ctrl-C ends it."""
        self.before = self.text
        ids = self.tokenizer.encode(self.text or END_OF_TEXT)
        text = Text(ids, self.max_new_tokens, self.sampling, self.seed)
        stream = TextStream(self.tokenizer, self.stops)
        self.seed += 1
        with contextlib.suppress(KeyboardInterrupt), keys_ignored():
            self.writer.add(text)
            while not (text.finish or stream.stopped):
                (drawn,) = self.writer.step()
                if drawn.token_id is not None:
                    self.show(stream.feed(drawn.token_id))
            self.show(stream.close())
        if text in self.writer.texts:
            self.writer.drop(text)
        print()
        if text.error:
            raise text.error

    def show(self, shown: str) -> None:
        self.text += shown
        print(shown, end="", flush=True)


@contextlib.contextmanager
def keys_ignored() -> Iterator[None]:
    """In a terminal, what is typed meanwhile is neither shown nor read later; Ctrl-C works as ever."""
    try:
        import termios
    except ImportError:  # not everywhere
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    usual = termios.tcgetattr(terminal)
    silent = [*usual]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcflush(terminal, termios.TCIFLUSH)  # what has been typed
        termios.tcsetattr(terminal, termios.TCSANOW, usual)


def converse(conversation: Conversation) -> None:
    """Until the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and history, where Python has them
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type how a text begins, or /help.")
    while True:
        try:
            if not conversation.answer(input("> " if terminal else "")):
                return
        except InputError as error:
            print(error, file=sys.stderr)
        except EOFError:
            return
        except KeyboardInterrupt:  # while one types
            print()

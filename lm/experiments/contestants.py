"""Reads the contestants of a race: their settings, how long each trains, and on what their losses are compared.

A contestant is a configuration, or the first configuration with other settings ("NAME: --SETTING VALUE ..."). All its
runs have the same number of steps, so that the schedule ends with the run:

    --steps N          N
    --cpu-seconds N    the most for which a probe (probe.py) predicts at most N processor seconds: some steps are timed
                       in a process of their own, and start, compilation, validations and saves counted apart
    neither            the configuration's own

Where a length is given, trainer.val_check_interval changes in proportion, and the number of validations stays.
"""

import hashlib
import json
import re
import shlex
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lm.experiments.probe import Probe, limited, measure
from lm.experiments.results import in_json
from lm.experiments.short_runs import Settings, check_settings, digests
from lm.runs.folder import CONFIG
from lm.strict_json import to_json
from tokenization import InputError, TokenFile

LENGTH, INTERVAL = "trainer.max_steps", "trainer.val_check_interval"
OF_THE_SEED = ("seed_everything", "data.seed")
LOSS, BITS = "val/loss", "val/bits_per_byte"
MEASURES = {LOSS: "validation loss, nats per token", BITS: "validation bits per byte"}


@dataclass(frozen=True)
class Budget:
    """What each run may take: steps, or processor seconds, or neither, which leaves each its own length."""

    steps: int | None = None
    cpu_seconds: float | None = None

    @property
    def compares_seconds(self) -> bool:
        """Whether a busy machine would change the result: with a number of steps, losses do not depend on it."""
        return self.steps is None

    def __str__(self) -> str:
        if self.cpu_seconds is not None:
            return f"{self.cpu_seconds:g} processor seconds a run"
        return f"{self.steps:,} steps a run" if self.steps is not None else "each at its configuration's own length"


@dataclass
class Contestant:
    """A contestant: its name, which is that of its folder, and its settings, with the length of its runs."""

    name: str
    arguments: list[str]  # of `lm fit`, without the length
    config: Namespace  # the same, parsed, with the configuration's own length
    settings: dict[str, Any]  # what its runs must have in common, by dotted names
    steps: int = 0
    interval: int = 0  # batches from one validation to the next

    @property
    def digest(self) -> str:
        return hashlib.sha256(to_json(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def flags(self) -> list[str]:
        """Returns the settings that give a run its length."""
        return [f"--{LENGTH}={self.steps}", f"--{INTERVAL}={self.interval}"]

    def set_length(self, steps: int) -> None:
        """Sets the length of the runs; InputError if the settings do not fit it."""
        config = self.shortened(steps)
        self.steps, self.interval = steps, config.trainer.val_check_interval
        try:
            check_settings(config)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    def given_interval(self) -> int | None:
        """Returns the --trainer.val_check_interval that is given, before the configuration's own length cuts it."""
        found = None
        for word, following in zip(self.arguments, [*self.arguments[1:], ""], strict=True):
            name, equals, value = word.partition("=")
            if name == f"--{INTERVAL}":
                found = int(float(value if equals else following))
        return found

    def shortened(self, steps: int) -> Namespace:
        """Returns the settings of runs of this length."""
        config, own = self.config.clone(), self.config.trainer
        batches = own.accumulate_grad_batches
        given = self.given_interval()
        share = steps / own.max_steps
        interval = max(1, round((given or share * own.val_check_interval) / batches))
        config.trainer.max_steps = steps
        config.trainer.val_check_interval = min(interval, steps) * batches
        return config


# --- reading them ----------------------------------------------------------------------------------------------------


def read_contestants(configs: list[str], variants: list[str], shared: list[str], budget: Budget) -> list[Contestant]:
    """Reads the contestants, the base first; InputError for settings that a race sets itself.

    variants: as "NAME: --SETTING VALUE ..."; shared: settings of all contestants.
    """
    named = [(name_of(Path(path)), [f"--config={path}", *shared]) for path in configs]
    for variant in variants:
        name, colon, words = variant.partition(":")
        if not colon or not name.strip():
            raise InputError(f'--variant {variant}: has no name; write "NAME: --SETTING VALUE"')
        try:
            named.append((name.strip(), [f"--config={configs[0]}", *shared, *shlex.split(words)]))
        except ValueError as error:
            raise InputError(f"--variant {variant}: {error}; close what is quoted") from None
    contestants: dict[str, Contestant] = {}
    for name, arguments in named:
        refuse_own_settings(name, arguments, budget)
        folder = re.sub(r"[^\w.+-]+", "_", name).strip(".") or "_"
        if folder in contestants:
            raise InputError(f"two contestants would be {folder}; give each a name of its own, as --variant can")
        config = Settings(["fit", *arguments]).config.fit
        contestants[folder] = Contestant(folder, arguments, config, settings_of(config, budget))
    return list(contestants.values())


def name_of(config: Path) -> str:
    """Returns the contestant's name: that of its configuration, or of the run that has recorded it."""
    return config.absolute().parent.name if config.name == CONFIG else config.stem


def refuse_own_settings(name: str, arguments: list[str], budget: Budget) -> None:
    """Raises InputError for settings that would not have the effect that one expects."""
    remedies = dict.fromkeys(OF_THE_SEED, "each run has a seed of its own; --seeds says how many")
    remedies |= dict.fromkeys(("trainer.default_root_dir", "ckpt_path", "print_config"), "--output names the folder")
    if budget != Budget():
        remedies[LENGTH] = "the budget decides; leave out --steps and --cpu-seconds, or this"
    given = {word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")}
    if help_wanted := {"-h", "--help"} & set(arguments):
        raise InputError(f"{name}: {help_wanted.pop()} is no setting; `lm fit --help` lists them")
    for setting in given & remedies.keys():
        raise InputError(f"{name}: --{setting} has no effect in a race: {remedies[setting]}")


def settings_of(config: Namespace, budget: Budget) -> dict[str, Any]:
    """Returns the settings that all runs of a contestant must share, with the digests of its data and the budget."""
    own = {"config", "trainer.default_root_dir", *OF_THE_SEED}
    own |= {"model.max_steps", "data.context_length", "data.vocab_size"}  # linked to settings listed anyway
    own |= {LENGTH, INTERVAL} if budget != Budget() else set()
    flat = {name: in_json(value) for name, value in vars(config.clone().as_flat()).items() if name not in own}
    flat |= digests(config) | {"--steps": budget.steps, "--cpu-seconds": budget.cpu_seconds}
    settings: dict[str, Any] = json.loads(to_json(flat, default=str))
    return settings


# --- their length ----------------------------------------------------------------------------------------------------


def steps_within(contestant: Contestant, budget: Budget) -> int:
    """Returns the number of steps for the budget; InputError if not one step fits in. Probes where seconds are given.

    The prediction grows with the number of steps, so that bisection finds the most.
    """
    if budget.cpu_seconds is None:
        return budget.steps or int(contestant.config.trainer.max_steps)
    try:
        seen = measure(["fit", *contestant.arguments], contestant.config)
    except InputError as error:
        raise InputError(f"{contestant.name}: {error}") from None
    return most_steps(seen, contestant, budget.cpu_seconds)


def most_steps(seen: Probe, contestant: Contestant, seconds: float) -> int:
    """Returns the most steps for which the probe predicts at most so many processor seconds."""

    def predicted(steps: int) -> float:
        return seen.by_processor(contestant.shortened(steps))["seconds"]

    bound = 1
    while predicted(bound) <= seconds and bound < 1 << 40:
        bound *= 2
    steps = bisect_right(range(1, bound + 1), seconds, key=predicted)
    if not steps:
        raise InputError(
            f"{contestant.name}: --cpu-seconds {seconds:g} is too little: start, compilation, one step and its"
            f" validation take {predicted(1):.0f} by a probe; give more"
        )
    return steps


# --- what is compared ------------------------------------------------------------------------------------------------


def common_measure(contestants: list[Contestant]) -> str:
    """Returns the tag of the curve to compare: the loss, or bits per byte if tokenizers differ.

    InputError if the contestants validate on other text than the base, which no measure makes comparable.
    """
    base, *others = contestants
    reference, measure = validated(base), LOSS
    for contestant in others:
        found, name = validated(contestant), contestant.name
        if found.data == reference.data:
            if found.tokens != reference.tokens and not (found.whole and reference.whole):
                raise InputError(
                    f"{name}: validates on {found.tokens:,} tokens, and {base.name} on {reference.tokens:,}; set"
                    " trainer.limit_val_batches so that they are the same, or to 1.0, which takes all, in both"
                )
        elif found.tokenizer == reference.tokenizer or not found.bytes or found.bytes != reference.bytes:
            raise InputError(
                f"{name}: validates on {contestant.config.data.val_path}, which is not {base.name}'s"
                f" {base.config.data.val_path}; losses on different text cannot be compared"
            )
        elif not (found.whole and reference.whole):
            raise InputError(
                f"{name}: does not use {base.name}'s tokenizer; only on the whole validation file do they see the"
                " same text: set --trainer.limit_val_batches 1.0"
            )
        else:
            measure = BITS
    return measure


class Validated(NamedTuple):
    """What a contestant validates on."""

    data: str  # digests
    tokenizer: str
    bytes: int  # of text in the whole file; 0 if unknown
    tokens: int  # that are scored
    whole: bool  # all batches of the file


def validated(contestant: Contestant) -> Validated:
    """Finds out what a contestant validates on, from its settings and its validation file."""
    data, context = contestant.config.data, contestant.config.model.context_length
    about = TokenFile.open(data.val_path, verify=False).description
    windows = (about.tokens - 1) // context
    batches = -(-windows // data.batch_size)
    taken = limited(batches, contestant.config.trainer.limit_val_batches)
    tokens = min(taken * data.batch_size, windows) * context
    return Validated(about.data_sha256, about.tokenizer_sha256, about.bytes, tokens, taken == batches)

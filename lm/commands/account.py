"""`lm account`: prints what a configuration or a preset costs, as a table or JSON, and draws it.

Settings are read as `lm fit` reads them. Nothing is trained, except with --probe.
"""

import argparse
import re

from lm.accounting.costs import EDITIONS, PRESETS, preset
from lm.accounting.estimate import estimate, training_time
from lm.accounting.tables import table
from lm.commands import new_parser
from lm.commands.fit import training
from lm.machine.peaks import GPU_PEAKS, peak_flops
from lm.machine.resources import native_precision
from lm.strict_json import to_json
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path
from tokenization.numerals import decimal_number
from tokenization.plots import check_plot

HELP = f"""Estimate what a run costs before it runs: parameters, memory and FLOPs by part, both as the handout counts
and as our fast path works. Besides the options below, every setting of `lm fit` can be given.

  lm account -c configs/tinystories-cpu.yaml                        the model and batch of a configuration
  lm account -c configs/demo.yaml --model.num_layers 8 --probe      runs some steps, and predicts the whole run
  lm account gpt2-xl --memory 80GB --tokens 419e9 --device "H100 tf32" --mfu 0.5
  lm account gpt2-xl --edition 2025 --json
  lm account gpt2-small --products                                  each matrix product, with its shape
  lm account gpt2-small --plot shares.png                           the parts' shares of the FLOPs, drawn

Presets: {", ".join(PRESETS)}.
"""
DEVICES = {f"{name} bf16": peak for name, peak in GPU_PEAKS.items()}
DEVICES |= {"A100 fp32": 19.5e12, "H100 tf32": 495e12}  # from the handout
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def make_parser() -> ArgumentParser:
    """Returns the parser of the options that are not settings of `lm fit`."""
    usage = "lm account {-c CONFIG | PRESET} [options] [--model.SETTING VALUE ...]"
    parser = new_parser("account", HELP, usage=usage, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[], help="a configuration of `lm fit`; repeatable")
    parser.add_argument(
        "--edition",
        type=int,
        choices=EDITIONS,
        default=2026,
        help="edition of the handout, for d_ff of the GPT-2 presets and its count of activations (default: 2026)",
    )
    parser.add_argument(
        "--memory", default="80GB", help="memory for the largest batch, such as 80GB or 80GiB (default: 80GB)"
    )
    parser.add_argument("--tokens", type=float, help="with --device: tokens to train on (default: the run's)")
    parser.add_argument(
        "--device", help=f"estimate the time on cpu (measured), {', '.join(DEVICES)}, or a number of FLOP/s"
    )
    parser.add_argument("--mfu", type=float, help="with --device: the share of its FLOP/s that is used (default: 0.5)")
    parser.add_argument("--probe", action="store_true", help="run some steps to predict the run's memory and time")
    parser.add_argument("--products", action="store_true", help="list the matrix products of a forward pass")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--plot",
        type=output_path,
        metavar="FILE.png",
        help="draw the parts' shares of the FLOPs against width and context length",
    )
    return parser


def run(argv: list[str]) -> None:
    """Estimates the costs and prints them."""
    name = argv[0] if argv and not argv[0].startswith("-") else None
    args, rest = make_parser().parse_known_args(argv[name is not None :])
    check(args, name)
    memory, device = parse_bytes(args.memory), find_peak(args.device) if args.device else None
    settings = [f"--config={path}" for path in args.config] or preset_arguments(str(name), args.edition)
    arguments = ["fit", *settings, *rest]
    with training():
        from lm.training.checks import check_classes
        from lm.training.parser import SettingsCLI

        config = SettingsCLI(arguments).config.fit
        check_classes(config)
        result = estimate(config, args.edition, memory) | {"name": name or ", ".join(args.config)}
        if device:
            result["training"] = training_time(config, args.tokens, *device, args.mfu or 0.5)
        if args.plot:
            from lm.experiments.shares import plot

            plot(vars(config.model), args.plot)
        if args.probe:
            from lm.experiments.probe import probe

            result["prediction"] = probe(arguments, config)
    print(to_json(result, indent=2) if args.json else "\n".join(table(result, args.products)))


def check(args: argparse.Namespace, name: str | None) -> None:
    """Raises InputError for arguments that do not go together. name: the preset's."""
    if (name is None) == (not args.config):
        raise InputError(f"name what to account for: -c CONFIG, or one preset of {', '.join(PRESETS)}")
    if name is not None and name not in PRESETS:
        raise InputError(f"{name}: no such preset; there are {', '.join(PRESETS)}; -c names a configuration")
    if args.probe and name is not None:
        raise InputError(f"--probe: the preset {name} has no data to train on; give a configuration (-c CONFIG)")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise InputError(f"--mfu {args.mfu}: it must be above 0 and at most 1")
    if args.tokens is not None and not 0 < args.tokens < float("inf"):
        raise InputError(f"--tokens {args.tokens}: it must be above 0")
    for option, value in (("--tokens", args.tokens), ("--mfu", args.mfu)):
        if value is not None and args.device is None:
            raise InputError(
                f"{option} {value:g}: is for the time on a device; name one with --device, or leave this out"
            )
    if args.plot:
        check_plot(args.plot, args.config)


def parse_bytes(text: str) -> float:
    """Reads an amount of memory: "80GB" -> 80e9."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([kmgt]i?b)", text.strip(), re.IGNORECASE | re.ASCII)
    try:
        amount = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise InputError(f"--memory {text}: is not an amount of memory; 80GB is 80e9 bytes, 80GiB 80 x 2^30")
    return amount


def find_peak(name: str) -> tuple[str, float]:
    """Returns a device's name, with the source of its speed if measured, and its peak FLOP/s."""
    if name == "cpu":
        peak = peak_flops("cpu", native_precision("cpu"))
        return f"cpu, {peak.source}", peak.flops
    try:
        flops = DEVICES[name] if name in DEVICES else decimal_number(name)
    except ValueError:
        raise InputError(f"--device {name}: no such device; there are cpu, {', '.join(DEVICES)}, or FLOP/s") from None
    if not 0 < flops < float("inf"):
        raise InputError(f"--device {name}: FLOP/s must be above 0")
    return name, flops


def preset_arguments(name: str, edition: int) -> list[str]:
    """Returns a preset as arguments of `lm fit`, without data."""
    arguments = [f"--model.{key}={value}" for key, value in preset(name, edition).items()]
    no_data = (f"--data.{key}=none" for key in ("train_path", "val_path", "tokenizer"))
    return [*arguments, *no_data, "--data.batch_size=1"]

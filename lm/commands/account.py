"""`lm account`: what a configuration or a preset costs, as a table, as JSON, or as a picture.

The command line is read as `lm fit` reads it. Nothing is trained, except with --probe.
"""

import argparse
import re
from typing import Any

from lm.accounting.costs import EDITIONS, PARTS, PRESETS, preset
from lm.accounting.estimate import estimate, training_time
from lm.commands import new_parser
from lm.commands.fit import training
from lm.experiments.figures import is_plot
from lm.machine.peaks import GPU_PEAKS, peak_flops
from lm.machine.resources import native_precision
from lm.model.transformer import DEFAULTS, MODEL_SETTINGS
from lm.strict_json import to_json
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path
from tokenization.outputs import check_file

HELP = f"""What a run costs, before it runs: parameters, memory and FLOPs by part, as the handout counts and as our fast
path does. Besides the options below it takes every setting that `lm fit` takes.

  lm account -c configs/tinystories-cpu.yaml                        the model and batch of a configuration
  lm account -c configs/demo.yaml --model.num_layers 8 --probe      some steps of it, and from them the whole run
  lm account gpt2-xl --memory 80GB --tokens 419e9 --device "H100 tf32" --mfu 0.5
  lm account gpt2-xl --edition 2025 --json
  lm account gpt2-small --plot shares.png                           the shares of the FLOPs against width and context

Presets: {", ".join(PRESETS)}.
"""
DEVICES = {f"{name} bf16": peak for name, peak in GPU_PEAKS.items()}
DEVICES |= {"A100 fp32": 19.5e12, "H100 tf32": 495e12}  # the handout's
UNITS = {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def make_parser() -> ArgumentParser:
    usage = "lm account {-c CONFIG | PRESET} [options] [--model.SETTING VALUE ...]"
    parser = new_parser("account", HELP, usage=usage, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[], help="a configuration of `lm fit`, or several")
    parser.add_argument(
        "--edition",
        type=int,
        choices=EDITIONS,
        default=2026,
        help="of the handout: d_ff of the GPT-2 presets, and which activations count (default: 2026)",
    )
    parser.add_argument("--memory", default="80GB", help="for the largest batch: 80GB, 80GiB (default: 80GB)")
    parser.add_argument("--tokens", type=float, help="to train on, with --device (default: the run's)")
    parser.add_argument("--device", help=f"cpu (measured), FLOP/s as a number, or: {', '.join(DEVICES)}")
    parser.add_argument("--mfu", type=float, help="share of the device's FLOP/s, with --device (default: 0.5)")
    parser.add_argument("--probe", action="store_true", help="run some steps, and predict the run's memory and time")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--plot", type=output_path, metavar="FILE.png", help="draw the shares of the FLOPs")
    return parser


def run(argv: list[str]) -> None:
    name = argv[0] if argv and not argv[0].startswith("-") else None
    args, rest = make_parser().parse_known_args(argv[name is not None :])
    check(args, name)
    memory, device = parse_bytes(args.memory), find_peak(args.device) if args.device else None
    settings = [f"--config={path}" for path in args.config] or preset_arguments(str(name), args.edition)
    arguments = ["fit", *settings, *rest]
    with training():
        from lm.training.parser import SettingsCLI

        config = SettingsCLI(arguments).config.fit
        try:
            result = estimate(config, args.edition, memory) | {"name": name or ", ".join(args.config)}
        except ValueError as error:  # the model's word that its settings do not fit together
            raise InputError(str(error)) from None
        if device:
            result["training"] = training_time(config, args.tokens, *device, args.mfu or 0.5)
        if args.plot:
            from lm.experiments.shares import plot

            plot(vars(config.model), args.plot)
        if args.probe:
            from lm.experiments.probe import probe

            result["prediction"] = probe(arguments, config)
    print(to_json(result, indent=2) if args.json else "\n".join(table(result)))


def check(args: argparse.Namespace, name: str | None) -> None:
    """Raises InputError where the arguments do not go together. name: the preset's."""
    if (name is None) == (not args.config):
        raise InputError(f"what is to be accounted for: -c CONFIG, or one of {', '.join(PRESETS)}?")
    if name is not None and name not in PRESETS:
        raise InputError(f"{name}: no such preset; there are {', '.join(PRESETS)}; -c names a configuration")
    if args.probe and name is not None:
        raise InputError(f"--probe: {name} has no text to train on; a configuration has (-c CONFIG)")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise InputError(f"--mfu {args.mfu}: it is a share, above 0 and at most 1")
    if args.tokens is not None and not 0 < args.tokens < float("inf"):
        raise InputError(f"--tokens {args.tokens}: it must be above 0")
    for option, value in (("--tokens", args.tokens), ("--mfu", args.mfu)):
        if value is not None and args.device is None:
            raise InputError(
                f"{option} {value:g}: is for the time on a device; name it with --device, or leave this out"
            )
    if args.plot:
        check_file(args.plot, args.config, "a plot of `lm`", is_plot)


def parse_bytes(text: str) -> float:
    """Reads an amount of memory: "80GB" -> 80e9."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([kmgt]i?b)?", text.strip(), re.IGNORECASE)
    try:
        amount = float(match[1]) * UNITS[(match[2] or "").upper()] if match else 0.0
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise InputError(f"--memory {text}: is no amount of memory; 80GB is 80e9 bytes, 80GiB 80 x 2^30")
    return amount


def find_peak(name: str) -> tuple[str, float]:
    """Returns a device's name, with where its speed is from if it was measured, and its peak FLOP/s."""
    if name == "cpu":
        peak = peak_flops("cpu", native_precision("cpu"))
        return f"cpu, {peak.source}", peak.flops
    try:
        flops = DEVICES[name] if name in DEVICES else float(name)
    except ValueError:
        raise InputError(f"--device {name}: no such device; there are cpu, {', '.join(DEVICES)}, or FLOP/s") from None
    if not 0 < flops < float("inf"):
        raise InputError(f"--device {name}: FLOP/s must be above 0")
    return name, flops


def preset_arguments(name: str, edition: int) -> list[str]:
    """Returns a preset as arguments of `lm fit`, without a text."""
    arguments = [f"--model.{key}={value}" for key, value in preset(name, edition).items()]
    no_data = (f"--data.{key}=none" for key in ("train_path", "val_path", "tokenizer"))
    return [*arguments, *no_data, "--data.batch_size=1"]


# --- the table -------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> list[str]:
    """Lays out everything, a line each."""
    settings, batch_size = result["settings"], result["batch_size"]
    shown = [name for name in MODEL_SETTINGS if settings[name] != DEFAULTS.get(name)]
    lines = [f"{result['name']}: " + ", ".join(f"{name} {settings[name]}" for name in shown), *by_part(result)]
    gains, head = result["parameters"]["norms"], result["forward_flops"]["head"]
    total, forward = sum(result["parameters"].values()), sum(result["forward_flops"].values())
    kept = {name: sum(parts.values()) for name, parts in result["activation_bytes"].items()}
    kept["handout"] *= batch_size
    state = result["state_bytes"]
    lines += [
        f"without the norms' gains {total - gains:,} parameters; without the head {forward - head:.4g} forward FLOPs",
        *([f"AdamW: {result['adamw_flops']:.4g} FLOPs a step"] if settings["optimizer"] == "adamw" else []),
        "",
        f"{'memory, GB':<28}{'handout':>12}{'ours':>12}    ours: {result['arrangement']}",
        *(f"{name:<28}{size / 1e9:>12.3f}{size / 1e9:>12.3f}" for name, size in state.items()),
        f"{f'activations, batch of {batch_size}':<28}{kept['handout'] / 1e9:>12.3f}{kept['ours'] / 1e9:>12.3f}",
        f"{'together':<28}" + "".join(f"{(sum(state.values()) + kept[key]) / 1e9:>12.3f}" for key in kept),
        f"{'largest batch in ' + format(result['memory'] / 1e9, '.4g') + ' GB':<28}"
        + "".join(f"{result['largest_batch'][key]:>12,}" for key in kept),
        f"{'peak of the process, CPU':<28}{'':>12}{result['peak_bytes'] / 1e9:>12.3f}",
    ]
    if result["not_counted"]:
        lines += ["", f"not counted: {', '.join(result['not_counted'])}; this is one process on a CPU"]
    if "training" in result:
        words = result["training"]
        tokens, rate, days = words["tokens"], words["flops_per_second"] / 1e12, words["seconds"] / 86400
        lines += [
            "",
            f"{tokens:.4g} tokens on {words['device']} ({rate:,.4g} TFLOP/s) at an MFU of {words['mfu']:.0%}:"
            f" {days:,.4g} days ({days * 24:,.4g} hours)",
        ]
    if "prediction" in result:
        lines += ["", *(f"{name:<28}{value}" for name, value in spell(result["prediction"]).items())]
    return lines


def by_part(result: dict[str, Any]) -> list[str]:
    """Lays out parameters, FLOPs and activations, a row for each part."""
    heads = ("parameters", "%", "forward FLOPs", "%", "training FLOPs", "handout MB", "ours MB")
    widths = (16, 7, 15, 7, 16, 12, 12)

    def row(name: str, cells: tuple[str, ...]) -> str:
        return f"{name:<14}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    columns = [result[key] for key in ("parameters", "forward_flops", "training_flops")]
    columns += [result["activation_bytes"][key] for key in ("handout", "ours")]
    totals = [sum(column.values()) for column in columns]
    lines = [f"{'':<68}FLOPs of one sequence; activations of one sequence, and of the batch", row("", heads)]
    for part in (*PARTS, "total"):
        counts, forward, training, handout, ours = (
            total if part == "total" else column[part] for column, total in zip(columns, totals, strict=True)
        )
        shares = (f"{counts / totals[0]:.1%}", f"{forward / totals[1]:.1%}")
        cells = (f"{counts:,}", shares[0], f"{forward:.4g}", shares[1], f"{training:.4g}")
        lines.append(row(part, (*cells, f"{handout / 1e6:,.1f}", f"{ours / 1e6:,.1f}")))
    return lines


def spell(prediction: dict[str, Any]) -> dict[str, str]:
    """Puts what a probe predicts into words, by what they are about."""
    busy = prediction["other_programs"]
    return {
        "predicted from a probe": f"{prediction['steps_probed']:.0f} steps",
        "peak memory": f"{prediction['peak_bytes'] / 1e9:.2f} GB",
        "speed": f"{prediction['tokens_per_second']:,.0f} tokens/s, an MFU of {prediction['mfu']:.0%} of"
        f" {prediction['peak_flops'] / 1e9:,.0f} GFLOP/s ({prediction['peak_source']})",
        "time": f"{prediction['seconds'] / 60:,.1f} min, of which {prediction['start_seconds']:,.0f} s until the first"
        f" step is done, {prediction['training_seconds']:,.0f} s of steps, {prediction['validation_seconds']:,.0f} s of"
        f" validation, {prediction['saving_seconds']:,.0f} s of samples and saving",
        "processor time": f"{prediction['processor_seconds'] / 60:,.1f} min",
        "a checkpoint": f"{prediction['checkpoint_bytes'] / 1e6:,.1f} MB",
    } | ({"other programs": f"took {busy:.1f} cores meanwhile: alone, the run would be faster"} if busy else {})

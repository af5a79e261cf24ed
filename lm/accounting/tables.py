"""Lays out what `lm account` has found as lines of text: by part, by product, memory, time.

The figures are estimate.py's and the probe's; nothing is computed here but shares and units.
"""

from typing import Any

from lm.accounting.costs import PARTS
from lm.durations import format_duration
from lm.model.transformer import DEFAULTS, MODEL_SETTINGS


def table(result: dict[str, Any], with_products: bool = False) -> list[str]:
    """Lays out the whole result as lines of text, with the list of matrix products where it is wanted."""
    settings = result["settings"]
    shown = [name for name in MODEL_SETTINGS if settings[name] != DEFAULTS.get(name)]
    lines = [f"{result['name']}: " + ", ".join(f"{name} {settings[name]}" for name in shown), *by_part(result)]
    if with_products:
        lines += ["", *by_product(result), ""]
    gains, head = result["parameters"]["norms"], result["forward_flops"]["head"]
    total, forward = sum(result["parameters"].values()), sum(result["forward_flops"].values())
    lines += [
        f"without the norms' gains {total - gains:,} parameters; without the head {forward - head:.4g} forward FLOPs",
        *([f"AdamW: {result['adamw_flops']:.4g} FLOPs a step"] if result["adamw_flops"] is not None else []),
        "",
        *memory(result),
    ]
    if result["not_counted"]:
        lines += ["", f"not counted: {', '.join(result['not_counted'])}; the figures are for one process on a CPU"]
    if "training" in result:
        words = result["training"]
        tokens, rate = words["tokens"], words["flops_per_second"] / 1e12
        lines += [
            "",
            f"{tokens:.4g} tokens on {words['device']} ({rate:,.4g} TFLOP/s) at an MFU of {words['mfu']:.0%}:"
            f" {in_days(words['seconds'])}",
        ]
    if "prediction" in result:
        lines += ["", *(f"{name:<28}{value}" for name, value in spell(result["prediction"]).items())]
    return lines


def in_days(seconds: float) -> str:
    """Formats a time in days and hours, or one of less than a day in smaller units."""
    days = seconds / 86400
    return f"{days:,.4g} days ({days * 24:,.0f} hours)" if days >= 1 else format_duration(seconds)


def by_part(result: dict[str, Any]) -> list[str]:
    """Lays out parameters, FLOPs and activations as a table with a row for each part."""
    heads = ("parameters", "%", "forward FLOPs", "%", "no head", "training FLOPs", "handout MB", "ours MB")
    widths = (16, 7, 15, 7, 9, 16, 12, 12)

    def row(name: str, cells: tuple[str, ...]) -> str:
        return f"{name:<14}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    columns = [result[key] for key in ("parameters", "forward_flops", "training_flops")]
    columns += [result["activation_bytes"][key] for key in ("handout", "ours")]
    totals = [sum(column.values()) for column in columns]
    headless = totals[1] - result["forward_flops"]["head"]
    lines = [f"{'':<77}FLOPs of one sequence; activations of one sequence, and of the batch", row("", heads)]
    for part in (*PARTS, "total"):
        counts, forward, training, handout, ours = (
            total if part == "total" else column[part] for column, total in zip(columns, totals, strict=True)
        )
        without = "" if part == "head" else f"{1 if part == 'total' else forward / headless:.1%}"
        cells = (f"{counts:,}", f"{counts / totals[0]:.1%}", f"{forward:.4g}", f"{forward / totals[1]:.1%}", without)
        lines.append(row(part, (*cells, f"{training:.4g}", f"{handout / 1e6:,.1f}", f"{ours / 1e6:,.1f}")))
    return lines


def by_product(result: dict[str, Any]) -> list[str]:
    """Lays out the matrix products of one sequence as a table with a row for each."""
    total = sum(result["forward_flops"].values())
    lines = [f"{'product':<32}{'shapes':>33}{'times':>8}{'FLOPs':>12}{'%':>7}"]
    for product in result["matrix_products"]:
        rows, inner, columns = (f"{product[size]:,}" for size in ("rows", "inner", "columns"))
        lines.append(
            f"{product['part']:<14}{product['name']:<18}{f'({rows} x {inner}) ({inner} x {columns})':>33}"
            f"{product['times']:>8,}{product['flops']:>12.4g}{product['flops'] / total:>7.1%}"
        )
    return lines


def memory(result: dict[str, Any]) -> list[str]:
    """Lays out what training needs, as the handout counts and as our fast path works, in GB and in GiB."""
    batch_size, state = result["batch_size"], result["state_bytes"]
    kept = {name: sum(parts.values()) for name, parts in result["activation_bytes"].items()}
    kept["handout"] *= batch_size
    needs = {name: (size, size) for name, size in state.items()}
    needs[f"activations, batch of {batch_size}"] = kept["handout"], kept["ours"]
    needs["together"] = sum(state.values()) + kept["handout"], sum(state.values()) + kept["ours"]
    largest = result["largest_batch"]
    return [
        f"{'memory':<28}{'handout: GB':>12}{'GiB':>10}{'ours: GB':>12}{'GiB':>10}    ours: {result['arrangement']}",
        *(
            f"{name:<28}" + "".join(f"{size / 1e9:>12.3f}{size / 2**30:>10.3f}" for size in sizes)
            for name, sizes in needs.items()
        ),
        f"{'largest batch in ' + format(result['memory'] / 1e9, '.4g') + ' GB':<28}"
        f"{largest['handout']:>12,}{'':>10}{largest['ours']:>12,}",
        f"{'peak of the process, CPU':<28}{'':>22}{result['peak_bytes'] / 1e9:>12.3f}"
        f"{result['peak_bytes'] / 2**30:>10.3f}",
    ]


def spell(prediction: dict[str, Any]) -> dict[str, str]:
    """Formats what a probe predicts, by subject."""
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

"""Markdown tables of the results of `compare.py`."""

from benchmarks.speed.contest import summary
from benchmarks.speed.flops import TRAINING

NAMES = {
    "ours": "ddpm_jax", "diffusers_": "diffusers", "lucidrains_": "denoising_diffusion_pytorch",
}
GIB = 2**30


def page(results):
    """The whole page."""
    about, matches = results["about"], results["matches"]
    versions = ", ".join(sorted(
        {f"{name} {v}" for facts in about.values() for name, v in facts["versions"].items()}
    ))
    machine = results["machine"]
    peaks = "; ".join(
        f"{dtype} {peak(about, dtype) / 1e9:,.0f} GFLOP/s" for dtype in about["ours"]["peak"]
    )
    lines = [
        "# Speed", "", f"`{results['command']}`, {results['date']}.", "",
        f"{about['ours']['device']} ({machine['processor']}, {machine['cores']} cores), Python "
        f"{machine['python']}, {versions}. Networks in {results['dtype']}. Peak, the fastest "
        f"product of large matrices in either framework: {peaks}.", "",
        f"Median of {results['rounds']} rounds, measured in turn, with the lowest and highest; "
        "docs/speed.md describes each task.", "",
        *(f"{NAMES[who]} was left out: {reason}\n" for who, reason in results["absent"].items()),
        "## Ours compared with the fastest peer", "",
        "| task | network | batch | ours/fastest peer | which |", "|---|---|---|---|---|",
        *(ratio_row(match) for match in matches), "", "## All", "",
        *(match_table(match, about, results["dtype"]) for match in matches),
    ]
    return "\n".join(lines)


def peak(about, dtype):
    """The peak of the machine, FLOP/s."""
    return max(facts["peak"][dtype] for facts in about.values())


def fastest_other(match):
    """The fastest peer's entry and how many times as fast ours is, or (None, None)."""
    ours, *others = match["entries"]
    others = [entry for entry in others if "failed" not in entry]
    if "failed" in ours or not others:
        return None, None
    best = max(others, key=lambda entry: summary(entry["seconds"])["median"])
    return best, ratio(ours, best)


def ratio(entry, other):
    """How many times as fast as another entry is one, by their medians?"""
    return summary(entry["seconds"])["median"] / summary(other["seconds"])["median"]


def ratio_row(match):
    best, times = fastest_other(match)
    which = f"{times:.2f} | {called(best)}" if best else "| "
    return f"| {match['task']} | {match['network']} | {match['batch_size']} | {which} |"


def called(entry):
    mode = entry["mode"].replace("_", " ")
    return f"{NAMES[entry['who']]}{', ' * bool(mode)}{mode}"


def match_table(match, about, dtype):
    """A heading and a table with one row per entry."""
    timed = not match["task"].startswith(("start", "checkpoint", "logging"))
    calls = f", {match['calls']:,} network calls per image" if match["calls"] > 1 else ""
    dropout = f", dropout {match['dropout']}" if match["task"] == "train" else ""
    ours = match["entries"][0]
    lines = [
        f"### {match['task']}, {match['network']}, batch {match['batch_size']}{calls}{dropout}",
        "", f"| program | {'images/s' if timed else 'seconds'} | low to high | ours/it | GFLOP/s "
        "| of peak | peak GiB | first call, s | parameters |", "|---|" + "---|" * 8,
    ]
    for entry in match["entries"]:
        if "failed" in entry:
            lines.append(f"| {called(entry)} | failed: {entry['failed']}" + " | " * 7 + " |")
            continue
        facts, rate = entry["facts"], summary(entry["seconds"])
        low, middle, high = (rate[name] for name in ("low", "median", "high"))
        if not timed:
            low, middle, high = 1 / high, 1 / middle, 1 / low
        per_image = facts.get("flops", 0) * (
            TRAINING if match["task"] == "train" else match["calls"]
        )
        work = per_image * rate["median"]
        cells = [
            called(entry), f"{middle:,.4g}", f"{low:,.4g} to {high:,.4g}",
            f"{ratio(ours, entry):.2f}" if "failed" not in ours else "",
            f"{work / 1e9:,.4g}" if work else "",
            f"{work / peak(about, dtype):.0%}" if work else "",
            f"{entry['peak_bytes'] / GIB:.2f}",
            f"{facts['first_call']:.1f}" if "first_call" in facts else "",
            f"{facts['parameters']:,}" if "parameters" in facts else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes(match)])


def notes(match):
    """Remarks about this match only."""
    written = [f"{called(entry)} {entry['facts']['on_disk']:.3g} s" for entry in match["entries"]
               if "on_disk" in entry.get("facts", {})]
    return ["Until everything is on disk: " + ", ".join(written) + ".", ""] if written else []

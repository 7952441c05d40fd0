"""Time and memory of every command as cells and genes grow, from files; memory against disk; one process against two.

    python benchmarks/scale.py [--cells 10000 30000 100000 300000 1000000] [--genes 20000] [--work FOLDER]
    python benchmarks/scale.py --only genes|processes|disk|cells
    python benchmarks/scale.py --only cells --commands preprocess train --repeats 2 --work FOLDER

Cells come from benchmarks/atlas.py (about 760 genes detected in each of 20,000), ordered by donor and type, and stay in
their file (--memory disk). The codec trains for a fixed number of steps and diffusion for one epoch, so that what grows
is what the cells cost: looking through them, encoding each, and training on each once. Fixed is what looks at no more
than so many cells, however many there are: the seconds between two lines that the command prints (FIXED). The exponent
p is of the other seconds = a + b * cells^p; and the same of all seconds. Files are kept in --work and used again.
Writes results/scale.json and results/scale.md; parts, sizes and commands that are not run again stay as they were, with
the commit they were measured with. --commands: cells are drawn from the run that --work holds, and evaluated where they
are drawn. --repeats: medians; every size once, then every size again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measuring

import scdiffkit

# isort: split
import numpy as np
from atlas import write_atlas
from scipy.optimize import curve_fit

from scdiffkit.training.status import TrainStatus

STEPS, CODEC_STEPS = 200, 100
COMMANDS = ("preprocess", "train", "sample", "evaluate")
# What does not grow, by the lines of the log before it (None: from the start) and after it.
FIXED = {
    "preprocess": ("genes are selected on", "selected as highly variable"),
    "train": ("principal components of", r"training cells, \d+ validation cells"),
    "sample": (None, "computing on"),
    "evaluate": (r"comparing \d+ cells per set", "raw counts in X, normalised"),
}
NONE = "not measured"
MEASURED = ("seconds", "fixed", "memory_mib")
Rows = list[dict[str, Any]]
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "scale.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--work", type=Path, help="where files go; they are kept (default: a temporary folder)")
    parser.add_argument("--commands", choices=COMMANDS, nargs="+", default=COMMANDS, help="of --only cells")
    parser.add_argument("--repeats", type=int, default=1, help="of --only cells")
    parser.add_argument("--only", choices=["cells", "genes", "processes", "disk"], action="append")
    options = parser.parse_args()
    path = measuring.RESULTS / "scale.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[], Iterator[Rows]]] = {
            "cells": lambda: of_cells(work, options.cells, options.genes, options.commands, options.repeats),
            "genes": lambda: of_genes(work),
            "processes": lambda: of_processes(work),
            "disk": lambda: of_disk(work, options.genes),
        }
        for name in options.only or parts:
            made_by = measuring.about()
            rows: Rows = [row for row in result.get(name, {}).get("rows", []) if name == "cells"]  # until measured anew
            for more in parts[name]():
                again = {(r.get("command"), r.get("cells")) for r in more} if name == "cells" else set()
                rows = [row for row in rows if (row.get("command"), row.get("cells")) not in again]
                rows += [{**row, "commit": made_by["commit"]} for row in more]
                result[name] = {"made_by": made_by, "rows": sorted(rows, key=lambda row: row.get("cells", 0))}
                measuring.save("scale", result, text(result))
    if "cells" in result:
        picture(result["cells"]["rows"], PICTURE)


def atlas(work: Path, cells: int, genes: int) -> Path:
    path = work / f"atlas-{cells}-{genes}.h5ad"
    if not path.exists():
        write_atlas(path, cells, genes)
    return path


def train(data: Path, out: Path, *options: object, length: tuple[str, int] = ("--max-steps", STEPS)) -> dict[str, Any]:
    short: list[object] = [*length, "--set", "train.patience=100"]
    if "gene" not in options:
        short += ["--set", f"codec.max_steps={CODEC_STEPS}"]
    return measuring.scdiff("train", data, "--label", "cell_type", "--out", out, "--force", *short, *options)


def of_cells(work: Path, sizes: list[int], genes: int, commands: Sequence[str], repeats: int) -> Iterator[Rows]:
    """Each of the commands, at every size; medians of what was measured so far."""
    measured: dict[tuple[str, int], Rows] = {}
    for n in sorted(sizes) * repeats:
        for name in (name for name in COMMANDS if name in commands):
            found = of_command(name, work, n, genes)
            found["fixed"] = fixed(name, found["said"])
            measured.setdefault((name, n), []).append(found)
        yield [
            row(name, n, genes, {key: float(np.median([r[key] for r in rows])) for key in MEASURED}, repeats=len(rows))
            for (name, size), rows in measured.items()
            if size == n
        ]
        for name in ("prepared", "drawn"):
            (work / f"{name}.h5ad").unlink(missing_ok=True)


def fixed(command: str, said: list[tuple[float, str]]) -> float:
    """Seconds of a command that do not grow with the cells."""
    before, after = FIXED[command]
    end = next(at for at, line in said if re.search(after, line))
    return end - (0 if before is None else next(at for at, line in said if re.search(before, line)))


def of_command(name: str, work: Path, n: int, genes: int) -> dict[str, Any]:
    """A command's time and memory with n cells; as many are drawn as there are."""
    data, run, drawn = atlas(work, n, genes), work / "run", work / "drawn.h5ad"
    if name == "preprocess":
        return measuring.scdiff(name, data, "-o", work / "prepared.h5ad", "--force", "--memory", "disk")
    if name == "train":
        return train(data, run, "--memory", "disk", length=("--max-epochs", 1))
    if name == "sample":
        return measuring.scdiff(name, run, "-n", n, "--ddim", 2, "-o", drawn, "--force")
    options = ("--label", "cell_type", "--memory", "disk", "--fast", "-o", work / "report", "--force")
    return measuring.scdiff(name, data, drawn, *options)


def of_genes(work: Path, n: int = 30_000) -> Iterator[Rows]:
    """Training, as genes grow."""
    for genes in (1000, 3000, 10_000, 30_000):
        yield [row("train", n, genes, train(atlas(work, n, genes), work / "run", "--memory", "disk"))]


def of_processes(work: Path, n: int = 10_000) -> Iterator[Rows]:
    """Cells per second of diffusion, by one process with all threads and by two; in turns, for machines are noisy."""
    for arch in ("dit", "whitebox"):
        rates: dict[int, list[float]] = {1: [], 2: []}
        for devices in (1, 2) * 3:
            rates[devices].append(rate(atlas(work, n, 2000), work / "run", arch, devices))
        one, two = (float(np.median(rates[devices])) for devices in (1, 2))
        yield [{"arch": arch, "one": round(one, 1), "two": round(two, 1), "ratio": round(two / one, 2)}]


def of_disk(work: Path, genes: int, n: int = 30_000) -> Iterator[Rows]:
    """Seconds that training takes from memory and from the file, in turns, and the held-out losses it ends with.

    In memory the codec sees its cells fully shuffled, from the file in blocks that are mixed in a buffer.
    """
    data = atlas(work, n, genes)
    for codec in ("count", "gene"):
        options: list[object] = ["--codec", codec, "--set", "train.val_every_steps=100"]
        if codec == "count":
            options += ["--set", "codec.max_steps=300"]  # these are what reads
        seconds: dict[str, list[float]] = {"ram": [], "disk": []}
        losses: dict[str, list[float]] = {"ram": [], "disk": []}
        for seed, where in itertools.product(range(3), seconds):
            found = train(data, work / "run", "--memory", where, "--seed", seed, *options)
            seconds[where].append(of_training(found["log"]))
            pattern = r"lowest held-out loss ([\d.]+) nats" if codec == "count" else r"held-out loss ([\d.]+) at step"
            losses[where].append(float(re.search(pattern, found["log"])[1]))  # type: ignore[index]
        memory, disk = (float(np.median(values)) for values in seconds.values())
        yield [{
            "codec": codec, "cells": n, "genes": genes,
            "memory": round(memory, 1), "disk": round(disk, 1), "ratio": round(disk / memory, 3),
            "losses_memory": losses["ram"], "losses_disk": losses["disk"],
        }]  # fmt: skip


def rate(data: Path, out: Path, arch: str, devices: int) -> float:
    """Cells per second of a training's steps, without the beginning, the held-out loss and the saving at the end."""
    seen: list[TrainStatus] = []
    settings = {
        "train.devices": devices, "train.max_steps": STEPS, "codec.max_steps": CODEC_STEPS,
        "train.val_every_steps": 100 * STEPS, "train.checkpoint_every_steps": None,
        "train.checkpoint_every_minutes": None,
    }  # fmt: skip
    run = scdiffkit.train(
        data, arch=arch, label="cell_type", out=out, force=True, overrides=settings, on_progress=seen.append
    )
    steps = [status for status in seen if status.stage == "diffusion" and status.step < STEPS]
    return (steps[-1].step - steps[0].step) * run.config().train.batch_size / (steps[-1].seconds - steps[0].seconds)


def of_training(log: str) -> float:
    """Seconds of all steps, as the command states them: "200 steps in 1 min 3 s"."""
    hours, minutes, seconds = re.search(r"steps in (?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+) s)?", log).groups("0")  # type: ignore[union-attr]
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def row(command: str, cells: int, genes: int, figures: dict[str, Any], **more: object) -> dict[str, Any]:
    found = {"seconds": round(figures["seconds"], 1), "memory_mib": round(figures["memory_mib"])}
    if "fixed" in figures:
        found["fixed"] = round(figures["fixed"], 1)
    return {"command": command, "cells": cells, "genes": genes, **found, **more}


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.5g} ({min(values):.5g} to {max(values):.5g})"


def exponent(cells: list[int], seconds: list[float]) -> float:
    """p of seconds = a + b * cells^p; relative errors count."""
    n, s = np.array(cells) / max(cells), np.array(seconds)
    start = [s[0], max(s[-1] - s[0], 1e-3), 1.0]
    (_, _, p), _ = curve_fit(
        lambda n, a, b, p: a + b * n**p, n, s, start, sigma=s, bounds=([0, 0, 0.3], [np.inf, np.inf, 3])
    )
    return float(p)


def in_brackets(r: dict[str, Any] | None) -> str:
    return NONE if r is None else f"{r['seconds']:.0f} ({r['fixed']:.0f})"


def listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def commits(rows: Rows, n: int) -> str:
    return ", ".join(dict.fromkeys(r.get("commit", "") for r in rows if r["cells"] == n))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of every command against the number of cells."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for command, marker in zip(COMMANDS, "osD^", strict=True):
        of = [r for r in rows if r["command"] == command]
        cells = [r["cells"] for r in of]
        axes[0].plot(cells, [r["seconds"] / 60 for r in of], marker=marker, label=f"scdiff {command}")
        axes[1].plot(cells, [r["memory_mib"] / 1024 for r in of], marker=marker)
    axes[0].set(xscale="log", yscale="log", xlabel="cells", ylabel="minutes", title="Time")
    axes[1].set(xscale="log", xlabel="cells", ylabel="GiB", ylim=(0, None), title="Peak memory")
    axes[0].legend(frameon=False, fontsize=9)
    axes[0].yaxis.set_major_formatter("{x:g}")
    for ax in axes:
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def text(result: dict[str, Any]) -> str:
    lines = ["# Scale", "", "Written by `python benchmarks/scale.py`."]
    if "cells" in result:
        rows, sizes = result["cells"]["rows"], sorted({r["cells"] for r in result["cells"]["rows"]})
        of = {(r["command"], r["cells"]): r for r in rows}
        lines += ["", "## Cells", "", measuring.in_words(result["cells"]["made_by"]), ""]
        lines += [f"{rows[0]['genes']:,} genes, h5ad left on disk; one epoch of diffusion, {CODEC_STEPS} steps of the",
                  "codec; as many cells drawn as there are (2 steps); `evaluate --fast`. Seconds, in brackets those of",
                  "what looks at no more than so many cells: the choice of genes (50,000); the codec's components",
                  "(20,000), its steps and its check; the start of sampling; scores and pictures.", ""]  # fmt: skip
        lines.append(measuring.table(["cells", *(f"{c}, s" for c in COMMANDS), "commit"], [
            [f"{n:,}", *(in_brackets(of.get((c, n))) for c in COMMANDS), commits(rows, n)] for n in sizes
        ]))  # fmt: skip
        runs = {c: sorted({r["repeats"] for r in rows if r["command"] == c}) for c in COMMANDS}
        lines += ["", "Runs of each size, of which these are medians: "
                  + ", ".join(f"{c} {' or '.join(map(str, n))}" for c, n in runs.items() if n) + ".", ""]  # fmt: skip
        lines += ["Peak memory, MiB:", ""]
        lines.append(measuring.table(["cells", *COMMANDS], [
            [f"{n:,}", *(of[c, n]["memory_mib"] if (c, n) in of else NONE for c in COMMANDS)] for n in sizes
        ]))  # fmt: skip
        complete = [c for c in COMMANDS if all((c, n) in of for n in sizes)]
        if len(sizes) > 3:
            growing = {c: exponent(sizes, [of[c, n]["seconds"] - of[c, n]["fixed"] for n in sizes]) for c in complete}
            whole = {c: exponent(sizes, [of[c, n]["seconds"] for n in sizes]) for c in complete}
            lines += ["", f"Exponent p of seconds = a + b cells^p, of those not in brackets: {listed(growing)}.",
                      "", f"Of all seconds: {listed(whole)}."]  # fmt: skip
        tenth = max((n for n in sizes if n <= sizes[-1] / 10), default=sizes[0])
        growth = {c: of[c, sizes[-1]]["memory_mib"] / of[c, tenth]["memory_mib"] for c in complete}
        lines += ["", f"Memory of {sizes[-1]:,} cells over that of {tenth:,}: {listed(growth)}."]
    if "genes" in result:
        lines += ["", "## Genes", "", measuring.in_words(result["genes"]["made_by"]), ""]
        lines.append(measuring.table(["genes", "cells", "train, s", "MiB"], [
            [f"{r['genes']:,}", f"{r['cells']:,}", r["seconds"], r["memory_mib"]] for r in result["genes"]["rows"]
        ]))  # fmt: skip
    if "processes" in result:
        lines += ["", "## Processes", "", measuring.in_words(result["processes"]["made_by"]), ""]
        lines += ["Diffusion, cells per second, preset `small`: one process with every thread, two with half of them",
                  "each (gloo); medians of three, measured in turns.", ""]  # fmt: skip
        lines.append(measuring.table(["architecture", "one", "two", "two over one"], [
            [r["arch"], r["one"], r["two"], r["ratio"]] for r in result["processes"]["rows"]
        ]))  # fmt: skip
    if "disk" in result:
        lines += ["", "## Memory against disk", "", measuring.in_words(result["disk"]["made_by"]), ""]
        lines += ["Seconds of a whole training, of the same cells; medians of three seeds, measured in turns; and",
                  "the lowest held-out loss (count: the codec's, nats a cell; gene: diffusion's), mean and range.",
                  "In memory cells are fully shuffled; from the file, ordered by donor and type, in blocks, mixed.",
                  ""]  # fmt: skip
        lines.append(measuring.table(
            ["codec", "cells", "genes", "in memory, s", "on disk, s", "disk over memory", "loss in memory",
             "loss on disk"],
            [[r["codec"], f"{r['cells']:,}", f"{r['genes']:,}", r["memory"], r["disk"], r["ratio"],
              spread(r["losses_memory"]), spread(r["losses_disk"])]
             for r in result["disk"]["rows"]],
        ))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""How many steps does sampling need? Quality and time against the number of steps, for each sampler, beside real cells.

    python benchmarks/steps.py [--data pbmc3k] [--models dit,whitebox,gene-dit,gene-whitebox] [--runs FOLDER]
    python benchmarks/steps.py --table

The data are split as by benchmarks/quality.py: 60% to train on, 20% to score against, 20% that stand for a perfect
model (the floor). Each model is trained once with preset small, in RUNS/MODEL, unless there is such a run, which must
have learnt from the same split. Each sampler then draws as many cells as there are test cells, with their composition,
once for each seed: the samplers start from the same noise, and the seeds tell the noise of the scores.

Every result goes into OUT.json at once, so that a repeated command does only what is missing; the table goes to OUT.md
and the picture to --picture. Sets of many network calls come last, and none is begun after --minutes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import quality  # beside this file; imports scdiffkit before torch

# isort: split
import numpy as np
from anndata import AnnData

import scdiffkit
from scdiffkit.config import SampleConfig
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.io import atomic_write_text
from scdiffkit.metrics.coverage import precision_recall
from scdiffkit.metrics.joint import mmd_pca
from scdiffkit.run import Run, is_run

HERE = Path(__file__).resolve().parent
FEW = 100  # steps; sets of more are drawn last
quality.N_TREES = 100  # a third of the trees: there are many sets to score
# Scores: title, format, and the sign of what is better.
SCORES: dict[str, tuple[str, str, int]] = {
    "auc_components": ("AUC, components", "{:.3f}", -1),
    "auc_genes": ("AUC, genes", "{:.3f}", -1),
    "recall": ("recall", "{:.3f}", 1),
    "coverage": ("coverage", "{:.3f}", 1),
    "mmd": ("MMD² × 1000", "{:.2f}", -1),
    "spread": ("spread", "{:.3f}", 0),
}
COMPARED = ("auc_components", "auc_genes", "recall", "coverage")
LEGEND = """\
Each score is between as many generated cells as there are held-out test cells and these, in log1p(counts / total *
1e4); ± half the difference of two seeds. AUC: random forest (100 trees) telling them apart, cross-validated, by 20
principal components (fitted on the training cells) or the 2000 most variable genes; 0.5 is best. Recall and coverage
(k = 5) and MMD² in the components; spread: standard deviation over the components' test cells', 1 is best.
Milliseconds a cell: those with a batch in the network or the sampler's arithmetic, and all in all (with decoding,
drawing counts and normalising), the faster of the seeds."""


class Set(NamedTuple):
    """One set of cells to draw."""

    model: str
    sampler: str
    steps: int
    seed: int


def main() -> None:
    options = arguments()
    path = options.out.with_suffix(".json")
    report = json.loads(path.read_text()) if path.exists() else {"sets": []}
    if not options.table:
        measure(options, report, path)
    atomic_write_text(options.out.with_suffix(".md"), text := table(report))
    print(text)
    picture(report, options.picture)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pbmc3k", help="FILE.h5ad:LABEL, or a data set of benchmarks/quality.py")
    parser.add_argument("--data-dir", type=Path, default=HERE.parents[1] / "shared" / "data", help="of the named sets")
    parser.add_argument("--models", default="dit,whitebox,gene-dit,gene-whitebox", help="[gene-]ARCH, ...")
    parser.add_argument("--runs", type=Path, default=Path("scdiff-runs/steps"), help="folder of the models' runs")
    parser.add_argument("--max-time", type=float, help="minutes of training for each model (as long as the preset's)")
    parser.add_argument("--steps", default="5,10,20,50,100,1000", help="of ddim and dpm; ddpm takes all of training")
    parser.add_argument("--samplers", default="ddim,dpm,ddpm", help="which of them")
    parser.add_argument("--seeds", type=int, default=2, help="sets of cells for each model, sampler and steps")
    parser.add_argument("--minutes", type=float, default=60, help="no set is begun after so long")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "steps")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "steps.png")
    parser.add_argument("--table", action="store_true", help="only table and picture of the results that are there")
    options = parser.parse_args()
    options.models = [name.strip() for name in options.models.split(",")]
    options.samplers = [name.strip() for name in options.samplers.split(",")]
    options.steps = sorted(int(n) for n in options.steps.split(","))
    return options


# Measuring


def measure(options: argparse.Namespace, report: dict[str, Any], path: Path) -> None:
    dataset = quality.DataSet.parse(options.data, options.data_dir)
    train, test, reference = quality.split(quality.load(dataset), dataset.keys)
    runs = {model: trained(model, dataset, train, options) for model in options.models}
    scored = Scored(train, test)
    report |= {
        "dataset": dataset.name,
        "cells": {"train": train.n_obs, "test": test.n_obs},
        "trained": {
            **report.get("trained", {}),
            **{
                model: {"commit": run.provenance().get("commit"), "step": run.best_step()}
                for model, run in runs.items()
            },
        },
        "made_by": quality.circumstances(),
    }
    done = {Set(*(s[key] for key in Set._fields)) for s in report["sets"]}
    for model, run in runs.items():
        if model not in report.setdefault("floor", {}):
            genes = reference[:, reference.var_names.isin(run.genes())]
            report["floor"][model] = scored(model, AnnData(genes.X, obs=total_counts(reference), var=genes.var))
    end = time.monotonic() + 60 * options.minutes
    for todo in wanted(options, runs):
        if todo in done or time.monotonic() > end:
            continue
        cells, seconds = drawn(runs[todo.model], todo, test)
        scores = scored(todo.model, cells)
        ms = {name: 1000 * value / cells.n_obs for name, value in seconds.items()}
        report["sets"].append({**todo._asdict(), **scores, "ms_a_cell": ms})
        print(f"{time.strftime('%H:%M:%S')} {todo} {ms} {scores}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(report, indent=1) + "\n")


def trained(model: str, dataset: Any, train: AnnData, options: argparse.Namespace) -> Run:
    """The model's run, trained now unless it is there."""
    folder = options.runs / model
    if is_run(folder):
        return Run.open(folder)
    print(f"{time.strftime('%H:%M:%S')} training {model}", flush=True)
    prefix, _, arch = model.rpartition("-")
    return scdiffkit.train(
        train,
        arch=arch,
        preset="small",
        label=dataset.label,
        overrides={"codec.name": prefix or "count"},
        max_time=options.max_time and 60 * options.max_time,
        out=folder,
    )


def wanted(options: argparse.Namespace, runs: dict[str, Run]) -> list[Set]:
    """What to draw, the most telling for its time first: few steps before many, one seed before the next."""
    sets = []
    for model, run in runs.items():
        for seed in range(options.seeds):
            sets += [Set(model, sampler, steps, seed) for steps in options.steps for sampler in ("ddim", "dpm")]
            sets.append(Set(model, "ddpm", run.config().diffusion.num_train_timesteps, seed))
    sets = [s for s in sets if s.sampler in options.samplers]

    def order(s: Set) -> tuple[Any, ...]:
        long = s.steps > FEW
        postponed = long * (s.seed + (s.sampler == "dpm") + s.model.startswith("gene"))
        return postponed, s.seed, long, s.sampler if long else ""

    return sorted(sets, key=order)


def drawn(run: Run, todo: Set, test: AnnData) -> tuple[AnnData, dict[str, float]]:
    """Cells with the composition of the test cells, of which the labels are all that is used; and seconds taken."""
    given = {"steps": todo.steps} if todo.sampler != "ddpm" else {}
    config = SampleConfig(sampler=todo.sampler, seed=todo.seed, **given)
    with warnings.catch_warnings(), network_clock() as clock:
        warnings.filterwarnings("ignore", "The library sizes of the cells of .*like")
        start = time.perf_counter()
        cells = scdiffkit.sample(run, like=AnnData(obs=test.obs), config=config)
        seconds = {"network": clock["seconds"], "all": time.perf_counter() - start}
    return AnnData(cells.layers["counts"].astype(np.float32), obs=cells.obs, var=cells.var), seconds


@contextmanager
def network_clock() -> Iterator[dict[str, float]]:
    """Seconds in which some batch was in Denoiser.predict, which is all a step costs but for a few additions.

    Each core may draw a batch of its own, so that two are there at once: such seconds count once.
    """
    clock, predict = {"seconds": 0.0}, Denoiser.predict
    there, since, lock = 0, 0.0, Lock()

    def pass_by(step: int) -> None:
        nonlocal there, since
        with lock:
            now = time.perf_counter()
            if there:
                clock["seconds"] += now - since
            there, since = there + step, now

    def timed(*args: Any, **kwargs: Any) -> Any:
        pass_by(1)
        try:
            return predict(*args, **kwargs)
        finally:
            pass_by(-1)

    Denoiser.predict = timed  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        Denoiser.predict = predict  # type: ignore[method-assign]


def total_counts(cells: AnnData) -> Any:
    """obs with the sum over all genes, for cells that are then cut to fewer."""
    return cells.obs.assign(total_counts=np.asarray(cells.X.sum(axis=1)).ravel())


class Scored:
    """Scores against the test cells, in the genes that a model has."""

    def __init__(self, train: AnnData, test: AnnData) -> None:
        self.train, self.test = train, test
        self.spaces: dict[str, Any] = {}

    def __call__(self, model: str, cells: AnnData) -> dict[str, float]:
        if model not in self.spaces:
            space = quality.Space(self.train, cells.var_names)
            real = space.values(self.test)
            self.spaces[model] = space, real, space.components(real)[:, : quality.N_COMPONENTS]
        space, real, real_pcs = self.spaces[model]
        made = space.values(cells)
        pcs = space.components(made)[:, : quality.N_COMPONENTS]
        found = precision_recall(real_pcs, pcs)
        return {
            "auc_components": quality.auc(real_pcs, pcs),
            "auc_genes": quality.auc(space.variable(real), space.variable(made)),
            "recall": found["recall"],
            "coverage": found["coverage"],
            "mmd": float(mmd_pca(real_pcs, pcs)),
            "spread": float(np.sqrt(pcs.var(axis=0).sum() / real_pcs.var(axis=0).sum())),
        }


# Table and picture


def rows(report: dict[str, Any], model: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(sampler, steps) -> its sets, one a seed."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for s in report["sets"]:
        if s["model"] == model:
            found.setdefault((s["sampler"], s["steps"]), []).append(s)
    return dict(sorted(found.items()))


def noise(report: dict[str, Any], model: str, score: str) -> float:
    """Standard deviation of a score over seeds, pooled over all rows of all models with the same codec."""
    codec = model.rpartition("-")[0]
    groups = [
        [s[score] for s in sets]
        for other in report["floor"]
        if other.rpartition("-")[0] == codec
        for sets in rows(report, other).values()
        if len(sets) > 1
    ]
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in groups]))) if groups else float("nan")


def most_steps(report: dict[str, Any], model: str) -> int | None:
    """The largest number of DDIM steps there is."""
    return max((steps for sampler, steps in rows(report, model) if sampler == "ddim"), default=None)


def enough(report: dict[str, Any], model: str, sampler: str) -> int | None:
    """The fewest steps from which on no compared score is worse than the most DDIM steps' by two standard errors."""
    found, most, fewest = rows(report, model), most_steps(report, model), None
    if most is None or np.isnan(noise(report, model, COMPARED[0])):
        return None
    for _, steps in sorted((key for key in found if key[0] == sampler), reverse=True):
        for score in COMPARED:
            here, there = ([s[score] for s in found[key]] for key in ((sampler, steps), ("ddim", most)))
            loss = SCORES[score][2] * (np.mean(there) - np.mean(here))
            if loss > 2 * noise(report, model, score) * (1 / len(here) + 1 / len(there)) ** 0.5:
                return fewest
        fewest = steps
    return fewest


def table(report: dict[str, Any]) -> str:
    m, n = report["made_by"], report["cells"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        "# Quality and time against the number of sampling steps", "",
        f"{report['dataset']}: {n['train']} training cells, {n['test']} test cells and as many generated ones.", LEGEND,
        "", f"{m['machine']}, other work beside it; {versions}, commit {m['commit']}, {m['date']}.",
        f"Written by `python benchmarks/steps.py --data {report['dataset']}`.",
    ]  # fmt: skip
    head = ["sampler", "steps", *(title for title, _, _ in SCORES.values()), "ms, network", "ms, all"]
    for model, floor in report["floor"].items():
        lines += ["", f"## {title_of(model)}", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        other = [form.format(1000 * floor[key] if key == "mmd" else floor[key]) for key, (_, form, _) in SCORES.items()]
        lines.append("| " + " | ".join(["other real cells", "", *other, "", ""]) + " |")
        for (sampler, steps), sets in rows(report, model).items():
            cells = [
                in_words([s[key] * (1000 if key == "mmd" else 1) for s in sets], form)
                for key, (_, form, _) in SCORES.items()
            ]
            cells += [f"{min(s['ms_a_cell'][part] for s in sets):.3g}" for part in ("network", "all")]
            lines.append("| " + " | ".join([sampler, str(steps), *cells]) + " |")
        fewest = {sampler: enough(report, model, sampler) for sampler in ("ddim", "dpm")}
        said = ", ".join(f"{sampler} from {n} steps on" for sampler, n in fewest.items() if n)
        of_noise = ", ".join(f"{SCORES[key][0]} {noise(report, model, key):.3f}" for key in COMPARED)
        lines += ["", f"Neither AUC, recall nor coverage is worse than that of {most_steps(report, model)} DDIM steps,"]
        lines += [
            f"beyond two standard errors: {said or 'not known'}. Noise (standard deviation over seeds, this codec):"
        ]
        lines += [f"{of_noise}."]
    return "\n".join(lines) + "\n"


def title_of(model: str) -> str:
    prefix, _, arch = model.rpartition("-")
    return f"--codec {prefix or 'count'} --arch {arch}"


def in_words(values: list[float], form: str) -> str:
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(np.ptp(values) / 2)}"


def picture(report: dict[str, Any], path: Path) -> None:
    """AUC against steps, one panel a codec and kind of AUC; colours are samplers, dashes architectures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    codecs = list(dict.fromkeys(model.rpartition("-")[0] for model in report["floor"]))
    kinds = ("auc_components", "auc_genes")
    figure, axes = plt.subplots(
        1, 2 * len(codecs), figsize=(3.1 * 2 * len(codecs) + 1.3, 3.1), squeeze=False, layout="constrained"
    )
    colours, styles = {"ddim": "#d95f02", "dpm": "#1b6ca8", "ddpm": "#666666"}, ["-", "--", ":", "-."]
    for axis, (codec, kind) in zip(axes[0], [(c, k) for c in codecs for k in kinds]):
        models = [model for model in report["floor"] if model.rpartition("-")[0] == codec]
        for model, style in zip(models, styles):
            found = rows(report, model)
            for sampler, colour in colours.items():
                steps = [n for name, n in found if name == sampler]
                values = [[s[kind] for s in found[sampler, n]] for n in steps]
                label = f"{sampler}, {model.rpartition('-')[2]}"
                means = [np.mean(v) for v in values]
                bars = [np.ptp(v) / 2 for v in values]
                marker, line = ("*", "") if sampler == "ddpm" else ("o", style)
                face = colour if style == "-" else "white"
                axis.errorbar(
                    steps, means, bars, color=colour, linestyle=line, marker=marker, markersize=8 if line == "" else 4,
                    markerfacecolor=face, linewidth=1.3, elinewidth=0.8, label=label,
                )  # fmt: skip
        floor = np.mean([report["floor"][model][kind] for model in models])
        axis.axhline(floor, color="black", linewidth=0.8, linestyle=":", label="other real cells")
        axis.set_xscale("log")
        axis.set_xticks(ticks := sorted({s["steps"] for s in report["sets"]}), [str(n) for n in ticks])
        axis.minorticks_off()
        axis.set_title(f"{codec or 'count'} codec, {kind.removeprefix('auc_')}", fontsize=10)
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("AUC, real against synthetic (0.5: best)", fontsize=9)
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

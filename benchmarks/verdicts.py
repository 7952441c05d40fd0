"""Do verdicts hold? What `scdiff evaluate` says of cells whose truth is known.

    python benchmarks/verdicts.py [--data-dir DATA] [--splits 20] [--sizes 100 300 1000] [--cases real shuffled ...]
    python benchmarks/verdicts.py --tables

Of each data set, real cells are split into REAL (held out), TRAIN and a third group, n cells of each with the same
composition, or a third of the cells where there are fewer. The third group, as it is or spoilt, stands for SYNTHETIC:

real       as it is: a perfect model. Never poor or copied, and at least 95% indistinguishable, close or too few
shuffled   every gene shuffled among the cells of a type: never better than usable in part
copies-P   P% of the cells are exact copies of TRAIN: copied from 5% on, and at 1% named
donor      kang_ctrl alone: of donors that are neither in REAL nor in TRAIN, which share none: never copied
trained-*  cells of this tool, trained to its end (full) and for 30 s (short), on the other 80% of all cells: one split

Each result is a line of OUT.jsonl, so that a repeated command does only what is missing; the table goes to OUT.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import scdiffkit  # before torch: it sets how torch's threads wait

# isort: split
import measuring
import numpy as np
import pandas as pd
import quality
from anndata import AnnData, concat
from quality import DATASETS, DataSet

from scdiffkit.config import SampleConfig
from scdiffkit.evaluation.cell_sets import draw_order, shuffle_within
from scdiffkit.evaluation.facts import USES
from scdiffkit.evaluation.verdict import GRADE
from scdiffkit.io import atomic_write_text
from scdiffkit.metrics import METRICS
from scdiffkit.metrics.profiles import ALWAYS

HERE = Path(__file__).resolve().parent
COPIES = (1, 5, 20, 100)
CASES = ("real", "shuffled", *(f"copies-{share}" for share in COPIES), "donor", "trained-full", "trained-short")
DONORS = {"kang_ctrl": "batch"}
SHORT_SECONDS = 30.0
SPLITS = {  # of the 20 of `real`
    "shuffled": 3, "donor": 5, **{f"copies-{share}": 3 for share in COPIES}, "trained-full": 1, "trained-short": 1,
}  # fmt: skip
GRADED = {family for families in USES.values() for family in families}
BETTER_THAN_PART = [word for word, grade in GRADE.items() if grade == "good"]


def main() -> int:
    options = arguments()
    if not options.tables:
        done = {key(row) for row in results(options.out)}
        datasets = [DataSet.parse(spec, options.data_dir) for spec in options.data]
        cells = {d.name: quality.load(d, [DONORS[d.name]] if d.name in DONORS else []) for d in datasets}
        for split, dataset in product(range(options.splits), datasets):
            for case, n in jobs(options, dataset, split):
                if (dataset.name, case, n, split) in done:
                    continue
                row = judged(cells[dataset.name], dataset, case, n, split)
                with options.out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    text = table(results(options.out))
    atomic_write_text(options.out.with_suffix(".md"), text)
    print(text)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=list(DATASETS), help=f"default: {' '.join(DATASETS)}")
    parser.add_argument("--data-dir", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "verdicts")
    parser.add_argument("--tables", action="store_true", help="only write the table from the results that are there")
    return parser.parse_args()


def jobs(options: argparse.Namespace, dataset: DataSet, split: int) -> Iterator[tuple[str, int]]:
    """Cases of a split, and cells of each group."""
    for case in options.cases:
        if case == "donor" and dataset.name not in DONORS:
            continue
        if split >= SPLITS.get(case, options.splits):
            continue
        for n in options.sizes if not case.startswith("trained") else [0]:
            yield case, n


def results(out: Path) -> list[dict[str, Any]]:
    file = out.with_suffix(".jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["data"], row["case"], row["n"], row["split"]


def judged(adata: AnnData, dataset: DataSet, case: str, n: int, split: int) -> dict[str, Any]:
    """The verdict on one case; n 0: as many cells as there are."""
    began = time.monotonic()
    options: dict[str, Any] = {"label": dataset.label, "condition": [dataset.condition] if dataset.condition else []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.startswith("trained"):
            train, real, _ = (
                adata[rows] for rows in thirds(adata, dataset, adata.n_obs, split, shares=(0.8, 0.2, 0.0))
            )
            synthetic = trained(train.copy(), dataset, real.n_obs, short=case.endswith("short"))
        else:
            groups = donors(adata, DONORS[dataset.name], n, split) if case == "donor" else None
            real, train, other = (adata[rows].copy() for rows in groups or thirds(adata, dataset, n, split))
            synthetic = spoilt(other, train, dataset, case, split)
        found = scdiffkit.evaluate(
            real.copy(), synthetic, train=train.copy(), seed=split, metrics=enough_metrics(case), **options
        )
    verdict = found.verdict
    return {
        "data": dataset.name, "case": case, "n": n, "split": split, "cells": min(real.n_obs, synthetic.n_obs),
        "word": verdict.word, "interval": verdict.interval, "named": "exact copies" in str(verdict),
        "rf_auc": round(found["rf_auc"].value, 4), "reference": round(found["rf_auc"].real_reference, 4),
        "uses": verdict.uses, "seconds": round(time.monotonic() - began, 1), "commit": measuring.about()["commit"],
    }  # fmt: skip


def enough_metrics(case: str) -> tuple[str, ...]:
    """The metrics that decide the verdict on a case.

    The metrics that are always computed find copies, and their AUCs alone keep shuffled cells from "close"; the word
    that they give otherwise may differ from that of a full evaluation. The other cases are graded for their uses, too:
    by everything but the forests on five further sets of genes, which take a third of the time.
    """
    if case in ("real", "donor", "trained-full", "trained-short"):
        return tuple(
            name for name, m in METRICS.items()
            if m.default and m.family in GRADED and (name in ALWAYS or not name.startswith("rf_auc_"))
        )  # fmt: skip
    return ALWAYS


def thirds(
    adata: AnnData, dataset: DataSet, n: int, split: int, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
) -> list[np.ndarray]:
    """Rows of three disjoint groups of n cells, or of a third of all, with the composition of the whole."""
    types = adata.obs[dataset.keys].astype(str).agg(" | ".join, axis=1).to_numpy()
    order = draw_order(types, np.random.default_rng([split, 3]))
    sizes = [min(n, int(share * adata.n_obs)) for share in shares]
    ends = np.cumsum([0, *sizes])
    return [np.sort(order[a:b]) for a, b in pairwise(ends)]


def donors(adata: AnnData, column: str, n: int, split: int) -> list[np.ndarray]:
    """The same, of donors that the groups do not share."""
    of = adata.obs[column].astype(str).to_numpy()
    rng = np.random.default_rng([split, 5])
    parts = np.array_split(rng.permutation(np.unique(of)), 3)
    return [np.sort(rng.permutation(np.flatnonzero(np.isin(of, part)))[:n]) for part in parts]


def spoilt(other: AnnData, train: AnnData, dataset: DataSet, case: str, split: int) -> AnnData:
    rng = np.random.default_rng([split, 4])
    made = other.copy()
    if case == "shuffled":
        made.X = shuffle_within(made.X, made.obs[dataset.label].astype(str).to_numpy(), rng)
    elif case.startswith("copies"):
        n = max(1, round(int(case.removeprefix("copies-")) / 100 * made.n_obs))
        copied = train[rng.permutation(train.n_obs)[:n]]
        made = concat([made[rng.permutation(made.n_obs)[n:]], copied], index_unique="-")
    made.obs_names = [f"synthetic-{i}" for i in range(made.n_obs)]
    return made


def trained(train: AnnData, dataset: DataSet, n: int, *, short: bool) -> AnnData:
    with tempfile.TemporaryDirectory() as folder:
        run = scdiffkit.train(
            train, label=dataset.label, condition=[dataset.condition] if dataset.condition else [],
            out=Path(folder) / "run", max_time=SHORT_SECONDS if short else None,
        )  # fmt: skip
        return scdiffkit.sample(run, n, config=SampleConfig(steps=20))


def table(rows: list[dict[str, Any]]) -> str:
    """Verdicts of each case, how often, and whether what must hold does."""
    lines = [
        "# Do verdicts hold?", "",
        "By `python benchmarks/verdicts.py`, which describes the cases. Counts of verdicts over splits of five data "
        "sets. Shuffled cells and copies are scored by the metrics that are always computed, the others by all but "
        "five of the six forests on sets of genes.", "",
        "| case | cells of each | " + " | ".join(GRADE) + " | splits | must hold | holds |",
        "|---|---:|" + "---:|" * (len(GRADE) + 1) + "---|---|",
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    if frame.empty:
        return "\n".join(lines) + "\n"
    for case in (case for case in CASES if case in set(frame["case"])):
        for n, group in frame[frame["case"] == case].groupby("n"):
            counts = group["word"].value_counts()
            said = " | ".join(str(counts.get(word, 0)) for word in GRADE)
            wanted, holds = must_hold(case, group, frame)
            lines.append(f"| {case} | {n or 'all'} | {said} | {len(group)} | {wanted} | {holds} |")
    lines += ["", "By data set, of the real and of the trained cells:", ""]
    lines += ["| data | case | cells | verdicts |", "|---|---|---:|---|"]
    shown = frame[frame["case"].isin(["real", "trained-full", "trained-short"])]
    for (data, case, _), group in shown.groupby(["data", "case", "n"]):
        words = ", ".join(f"{word} {count}" for word, count in group["word"].value_counts().items())
        lines.append(f"| {data} | {case} | {group['cells'].iloc[0]} | {words} |")
    commits = ", ".join(sorted(set(frame["commit"])))
    lines += ["", f"Commits: {commits}. {len(frame)} evaluations, {frame['seconds'].sum() / 3600:.1f} h."]
    return "\n".join(lines) + "\n"


def must_hold(case: str, group: pd.DataFrame, frame: pd.DataFrame) -> tuple[str, str]:
    word = group["word"]
    if case == "real":
        fair = word.isin(["indistinguishable", "close", "too few"]).mean()
        never = not word.isin(["poor", "copied"]).any()
        return "95% indistinguishable, close or too few; never poor, copied", answer(fair >= 0.95 and never, fair)
    if case == "shuffled":
        return "never better than usable in part", answer(not word.isin(BETTER_THAN_PART).any())
    if case == "copies-1":
        return "named", answer(bool(group["named"].all()), group["named"].mean())
    if case.startswith("copies"):
        return "copied", answer(bool((word == "copied").all()), (word == "copied").mean())
    if case == "donor":
        return "never copied", answer(not (word == "copied").any())
    if case == "trained-short":
        full = frame[frame["case"] == "trained-full"].set_index("data")["interval"]
        worse = [low > full[data][1] for data, (low, _) in zip(group["data"], group["interval"]) if data in full]
        return "interval beyond that of trained-full, and a worse verdict", answer(
            all(worse) and bool(word.map(GRADE).eq("poor").all()), float(np.mean(worse)) if worse else None
        )
    return "never poor or copied", answer(not word.isin(["poor", "copied"]).any())


def answer(holds: bool, share: float | None = None) -> str:
    return ("yes" if holds else "NO") + ("" if share is None else f" ({share:.0%})")


if __name__ == "__main__":
    sys.exit(main())

"""Scoring of resamples by all metrics in parallel, and collection of the values of all resamples."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from threadpoolctl import threadpool_limits

from scdiffkit.errors import ConfigError
from scdiffkit.evaluation.cell_sets import CellSet, Subsample
from scdiffkit.evaluation.draws import draw_subsamples
from scdiffkit.evaluation.gene_sets import choose_gene_sets
from scdiffkit.evaluation.options import EvaluateConfig
from scdiffkit.evaluation.resample import (
    MIN_REAL_PER_TYPE,
    WITHOUT,
    Resample,
    computable,
    donors_left_out,
    donors_to_score,
    exact_shares,
    known_cells,
)
from scdiffkit.metrics import METRICS, PROTOCOLS, Metric
from scdiffkit.metrics.marginals import cv_per_gene, ks_per_gene, mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.registry import N_VARIABLE
from scdiffkit.metrics.score import Score, score_of
from scdiffkit.runtime.memory import trim_memory

# Imported before threads start: concurrent imports of submodules may see a partially initialised library.
IMPORTED_BY_METRICS = ("scipy.stats", "scipy.spatial.distance", "ot", "sklearn.decomposition", "sklearn.ensemble",
                       "sklearn.linear_model", "sklearn.manifold", "sklearn.metrics", "sklearn.model_selection",
                       "sklearn.neighbors", "sklearn.pipeline", "sklearn.preprocessing")  # fmt: skip
log = logging.getLogger("scdiffkit")

ValuesByMetric = dict[str, list[dict[str, float]]]  # metric -> for each resample: value, real_reference and baselines


@dataclass
class ResampleValues:
    """Values of all resamples, by metric.

    metrics: the metrics between all cells. protocol: the metrics of a protocol. types, donors: by name of the type or
    donor, the metrics within it. skipped: metrics that could not be computed, with the reasons. genes: see
    Evaluation.genes.
    """

    metrics: ValuesByMetric = field(default_factory=dict)
    protocol: ValuesByMetric = field(default_factory=dict)
    types: dict[str, ValuesByMetric] = field(default_factory=dict)
    donors: dict[str, ValuesByMetric] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    genes: pd.DataFrame | None = None


class Scorer:
    """Scores resamples one after the other.

    cell_sets: all sets of cells. sets: those that are compared; without "train", a resample uses two halves of the real
    cells. n: cells of each set in a resample. draws: whether drawing pictures counts as a step of `progress`.
    """

    def __init__(
        self,
        cell_sets: dict[str, CellSet],
        sets: dict[str, CellSet],
        n: int,
        config: EvaluateConfig,
        pool: ThreadPoolExecutor,
        *,
        draws: bool,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.cell_sets, self.sets, self.n, self.config, self.pool, self.draws = cell_sets, sets, n, config, pool, draws
        self.progress = progress or (lambda what, i, n: None)
        self.gene_sets = choose_gene_sets(cell_sets["real"].X, cell_sets["real"].counts, config.spaces)
        self.protocol_genes = None if config.protocol is None else _genes_of(config.protocol, cell_sets["real"])
        self.found = ResampleValues()
        # Run this first and alone: it covers all cells, so its memory grows with their number.
        self.exact = pool.submit(exact_shares, cell_sets)
        self.exact.result()
        self._exact_of_donors: dict[str, dict[str, float]] = {}
        self._first_drawn: tuple[Subsample, Subsample, Subsample] | None = None
        trim_memory()

    def score(self, r: int, draw: Callable[[Subsample, Subsample, Subsample], None] | None = None) -> None:
        """Score resample r. draw, if given, is called with the first resample's cells while metrics are computed."""
        drawn = draw_subsamples(self.sets, self.n, self.config.seed + 1000 * r)
        self._first_drawn = self._first_drawn or drawn
        training_pool, synthetic_pool = known_cells(self.cell_sets, self.n, self.config.seed + 1000 * r)
        resample = Resample(
            *drawn, pool=self.pool, training_pool=training_pool, synthetic_pool=synthetic_pool,
            trained="train" in self.cell_sets, reference_trained="train" in self.sets, gene_sets=self.gene_sets,
            chosen=self.config.chosen, bad_models=r == 0, seed=self.config.seed + r,
        )  # fmt: skip
        to_score, skipped = computable(resample, self.config.label)
        if r == 0:
            self.found.skipped = skipped
        to_score = [metric for metric in to_score if r == 0 or metric.name in self.found.metrics]  # r = 0 has baselines
        steps = len(to_score) * self.config.resamples + self.draws
        resample.prepare(to_score)
        scores = {
            metric: self.exact if metric.name == "exact_duplicates" else self.pool.submit(resample.score, metric)
            for metric in to_score
        }
        of_types, of_donors = self.pool.submit(resample.score_types), self.pool.submit(resample.score_donors)
        if draw is not None:
            self.progress("pictures", r * len(to_score), steps)
            draw(*self._first_drawn)
        for i, (metric, score) in enumerate(scores.items(), draw is not None):
            self.progress(f"{metric.family}: {metric.name}", r * len(to_score) + i, steps)
            self.found.metrics.setdefault(metric.name, []).append(score.result())
            trim_memory()
        _add(self.found.types, of_types.result(), first=r == 0)
        _add(self.found.donors, of_donors.result(), first=r == 0)
        self._score_exact_of_donors(resample)
        if self.config.protocol is not None:
            self.progress(self.config.protocol, (r + 1) * len(to_score), steps)
            self._score_protocol(drawn, r)
        if r == 0:
            self._note(resample)

    def _score_exact_of_donors(self, resample: Resample) -> None:
        for name in donors_to_score(resample):
            if name not in self._exact_of_donors:
                self._exact_of_donors[name] = exact_shares(self.cell_sets, name)
            of_donor = self.found.donors.setdefault(name, {})
            of_donor.setdefault("exact_duplicates", []).append(self._exact_of_donors[name])

    def _score_protocol(self, drawn: tuple[Subsample, Subsample, Subsample], r: int) -> None:
        """Score the metrics of the protocol in its genes."""
        assert self.config.protocol is not None
        assert self.protocol_genes is not None
        in_genes = [part.in_genes(self.protocol_genes) for part in drawn]
        resample = Resample(*in_genes, pool=self.pool, bad_models=r == 0, seed=self.config.seed + r)
        metrics: list[Metric] = []
        for metric in (METRICS[name] for name in PROTOCOLS[self.config.protocol].metrics):
            if all(need in part.per_cell for need in metric.needs for part in drawn):
                metrics.append(metric)
            else:
                self.found.skipped[metric.name] = WITHOUT[metric.needs[0]]
        resample.prepare(metrics)
        for metric, figures in zip(metrics, self.pool.map(resample.score, metrics), strict=True):
            self.found.protocol.setdefault(metric.name, []).append(figures)

    def _note(self, resample: Resample) -> None:
        self.found.genes = _genes_table(
            self.cell_sets["real"].genes, resample.real, resample.reference, resample.synthetic
        )
        few = donors_left_out(resample)
        if few:
            self.found.notes.append(
                f"Donors with fewer than {MIN_REAL_PER_TYPE} compared cells are not scored on their own: "
                f"{', '.join(few)}."
            )
        zeros = [1 - part.X.nnz / np.prod(part.X.shape) for part in (resample.real, resample.synthetic)]
        self.found.notes.append(f"Fraction of zeros: {zeros[0]:.3f} in real, {zeros[1]:.3f} in synthetic cells.")


def scores_of(figures: ValuesByMetric) -> list[Score]:
    return [score_of(METRICS[metric], of_metric) for metric, of_metric in figures.items()]


def scores_by_name(groups: dict[str, ValuesByMetric]) -> dict[str, list[Score]]:
    return {name: scores_of(figures) for name, figures in sorted(groups.items())}


@contextmanager
def metrics_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with one thread per core. Ctrl-C waits for running tasks, but cancels those that have not begun."""
    for name in IMPORTED_BY_METRICS:
        importlib.import_module(name)
    pool = ThreadPoolExecutor(cpu_count())
    # One BLAS thread per pool thread: faster, and sums do not depend on the number of cores.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap")  # it warns of a fixed seed and precomputed neighbours
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _add(groups: dict[str, ValuesByMetric], scored: dict[str, dict[str, dict[str, float]]], *, first: bool) -> None:
    """Add one resample's values by group and metric, if the first resample, which has the baselines, has them too."""
    for name, of_metrics in scored.items():
        for metric, figures in of_metrics.items():
            if first or metric in groups.get(name, ()):
                groups.setdefault(name, {}).setdefault(metric, []).append(figures)


def _genes_table(genes: pd.Index, real: Subsample, reference: Subsample, synthetic: Subsample) -> pd.DataFrame:
    """Build the table Evaluation.genes from real, other real and synthetic cells."""
    found: dict[str, Any] = {"gene": np.asarray(genes, dtype=str)}
    cell_sets = {"real": real, "reference": reference, "synthetic": synthetic}
    for figure, of_gene in (("mean", mean_per_gene), ("variance", variance_per_gene), ("zeros", zeros_per_gene)):
        found |= {f"{figure}_{name}": of_gene(part.X.astype(np.float64)) for name, part in cell_sets.items()}
    return pd.DataFrame(
        found | {"ks": ks_per_gene(real.X, synthetic.X), "ks_reference": ks_per_gene(real.X, reference.X)}
    )


def _genes_of(protocol: str, real: CellSet) -> np.ndarray:
    """Return the sorted indices of the genes that a protocol uses."""
    which, n_genes = PROTOCOLS[protocol].genes, real.X.shape[1]
    if which == "all" or n_genes <= N_VARIABLE:
        return np.arange(n_genes)
    if which == "cv":
        return np.sort(np.argsort(-cv_per_gene(real.X), kind="stable")[:N_VARIABLE])
    sets = choose_gene_sets(real.X, real.counts, ["hvg_seurat_v3"], N_VARIABLE)
    if sets.missing:
        raise ConfigError(
            f"--protocol {protocol} selects genes by the raw counts of the real cells: {sets.missing['hvg_seurat_v3']}."
        )
    return sets.places["hvg_seurat_v3"]

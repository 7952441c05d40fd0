"""The pictures of a report: which there are, and the data that they show."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.evaluation.cell_sets import CellSet, Subsample, draw_order
from scdiffkit.evaluation.report import figures
from scdiffkit.evaluation.report.figures import Picture
from scdiffkit.evaluation.report.layouts import LAYOUTS
from scdiffkit.metrics.biology import welch_t
from scdiffkit.metrics.marginals import ks_of_genes, mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.registry import N_VARIABLE

GENES_SHOWN = 4  # number of the most variable genes, and of the genes that differ most
MARKERS_OF_TYPE = 2
TYPES_SHOWN = 15
CELL_FIGURES = {
    "library_size": "log10 counts per cell",
    "genes_detected": "log10 genes per cell",
    "mitochondrial_share": "mitochondrial fraction",
}


class Drawing:
    """The report's pictures. Layouts are computed in the pool at the same time as metrics, and drawn by `draw`.

    sides: all sets; layouts show equally many real and synthetic cells, at most `most` of each. label: name of the
    obs column with the types. layouts: names of LAYOUTS.
    """

    def __init__(
        self, sides: dict[str, CellSet], most: int, label: str | None, seed: int, layouts: Sequence[str],
        pool: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.genes, self.label, self.seed = np.asarray(sides["real"].genes, dtype=str), label, seed
        self.shown = _cells_to_draw(sides, seed, most)
        self.layouts = {
            name: pool.submit(LAYOUTS[name], *(part.X for part in self.shown), seed=seed) for name in layouts
        }
        self.pictures: dict[str, Picture] = {}

    def draw(self, real: Subsample, reference: Subsample, synthetic: Subsample) -> None:
        """Draw all pictures of real, other real (reference) and synthetic cells; keep them by title, layouts first."""
        types = [part.types if self.label and part.has_types else None for part in self.shown]
        drawn = {
            "Distributions over cells": _cells(real, synthetic),
            "Distributions of single genes": _genes(self.genes, real.X, synthetic.X),
            "Mean, variance and zeros of genes": figures.trends(real.X, synthetic.X),
            "Correlations between genes": figures.correlations(
                self.genes, {"real": real.X, "other real cells": reference.X, "synthetic": synthetic.X}
            ),
        }
        if real.has_types and synthetic.has_types and len(set(real.types)) > 1:
            drawn["Marker genes"] = _markers(self.genes, real, synthetic, str(self.label))
        embeddings = {
            name: figures.embedding(name, *layout.result(), types, self.label, self.seed)
            for name, layout in self.layouts.items()
        }
        self.pictures = embeddings | drawn

    def positions(self) -> pd.DataFrame:
        """Return the cells of the first layout as the table Evaluation.cells."""
        frames = []
        for side, part, xy in zip(("real", "synthetic"), self.shown, next(iter(self.layouts.values())).result()):
            types = part.types[: len(xy)] if self.label and part.has_types else np.full(len(xy), None)
            frames.append(pd.DataFrame({"side": side, "type": types, "x": xy[:, 0], "y": xy[:, 1]}))
        return pd.concat(frames, ignore_index=True)


def _cells_to_draw(sides: dict[str, CellSet], seed: int, most: int) -> tuple[Subsample, Subsample]:
    """Draw equally many real and synthetic cells, at most `most` of each."""
    real, synthetic = sides["real"], sides["synthetic"]
    n = min(real.X.shape[0], synthetic.X.shape[0], most)
    orders = (
        draw_order(side.types, np.random.default_rng([seed, 7, i]))[:n] for i, side in enumerate((real, synthetic))
    )
    a, b = (side.subsample(rows) for side, rows in zip((real, synthetic), orders))
    return a, b


def _cells(real: Subsample, synthetic: Subsample) -> Picture:
    names = [name for name in CELL_FIGURES if all(name in part.per_cell for part in (real, synthetic))]
    pairs = [tuple(part.per_cell[name] for part in (real, synthetic)) for name in names]
    logs = [
        (np.log10(a + 1), np.log10(b + 1)) if name != "mitochondrial_share" else (a, b)
        for name, (a, b) in zip(names, pairs)
    ]
    alt = f"Distributions over cells, real (solid) and synthetic (dashed): {', '.join(CELL_FIGURES[n] for n in names)}."
    return figures.distributions([CELL_FIGURES[name] for name in names], logs, alt)


def _genes(names: np.ndarray, real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> Picture:
    """Draw the distributions of the most variable genes, and of the genes whose distributions differ most."""
    variable = np.argsort(-variance_per_gene(real), kind="stable")[:GENES_SHOWN]
    candidates = np.argsort(-variance_per_gene(real), kind="stable")[:N_VARIABLE]
    ks = ks_of_genes(real[:, candidates].toarray(), synthetic[:, candidates].toarray())
    differ = [g for g in candidates[np.argsort(-ks, kind="stable")] if g not in variable][:GENES_SHOWN]
    chosen = [*variable, *differ]
    pairs = [tuple(x[:, g].toarray().ravel() for x in (real, synthetic)) for g in chosen]
    titles = [f"{names[g]} ({'variable' if i < len(variable) else 'differs most'})" for i, g in enumerate(chosen)]
    alt = f"Distributions of log1p-normalised values, real (solid) and synthetic (dashed), of {', '.join(titles)}."
    return figures.distributions(titles, pairs, alt)


def _markers(names: np.ndarray, real: Subsample, synthetic: Subsample, label: str) -> Picture:
    """Draw the strongest markers of the most frequent types of the real cells."""
    counts = pd.Series(real.types).value_counts()
    types = sorted(counts.index[:TYPES_SHOWN])
    chosen: list[int] = []
    for name in types:
        strongest = np.argsort(-welch_t(real.X, real.types == name), kind="stable")
        chosen += [g for g in strongest[: 2 * MARKERS_OF_TYPE] if g not in chosen][:MARKERS_OF_TYPE]
    sides = {}
    for side, part in (("real", real), ("synthetic", synthetic)):
        of_types = [part.X[part.types == name][:, chosen] for name in types]
        none = np.zeros(len(chosen))
        share = np.array([1 - zeros_per_gene(x) if x.shape[0] else none for x in of_types])
        sides[side] = (share, np.array([mean_per_gene(x) if x.shape[0] else none for x in of_types]))
    return figures.dots(names[chosen].tolist(), types, sides, label)

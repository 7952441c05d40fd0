"""Writes an h5ad of any number of cells, for measurements of memory and time at scale.

    python benchmarks/atlas.py atlas.h5ad --cells 1000000 --genes 20000 [--donors 10]

Sparse counts as droplet data have them: genes' shares are log-normal and differ between cell types, a cell's counts
are multinomial at a log-normal depth. Cells lie in the order of donors and, within a donor, of types, as files that
were put together from samples do: the order that is hardest on training which reads blocks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.io import CellWriter

TYPES, BLOCK, MARKERS = 12, 4096, 0.03  # MARKERS: share of genes that a type has more of


def write_atlas(
    path: str | Path, n_cells: int, n_genes: int, *, donors: int = 4, depth: float = 1200, seed: int = 0
) -> None:
    """obs: cell_type (12 of unequal frequency) and donor; X: counts, CSR, gzip. depth: the median cell's counts."""
    rng = np.random.default_rng(seed)
    shares = rng.lognormal(0, 2.2, n_genes)
    of_types = np.stack([shares * np.where(rng.random(n_genes) < MARKERS, 8.0, 1.0) for _ in range(TYPES)])
    edges = np.cumsum(of_types, axis=1)
    frequency = rng.dirichlet(np.full(TYPES, 2.0))
    kinds = np.concatenate([np.sort(rng.choice(TYPES, size, p=frequency)) for size in _sizes(n_cells, donors)])
    donor = np.repeat(np.arange(donors), _sizes(n_cells, donors))
    names = pd.Index([f"gene{i:05d}" for i in range(n_genes)])
    types, of = (pd.Index([f"{kind}{i:02d}" for i in range(n)]) for kind, n in (("type", TYPES), ("donor", donors)))
    with CellWriter(path, names, layers=(), force=True) as out:
        for start in range(0, n_cells, BLOCK):
            part = slice(start, start + BLOCK)
            obs = pd.DataFrame(
                {
                    "cell_type": pd.Categorical.from_codes(kinds[part], types),
                    "donor": pd.Categorical.from_codes(donor[part], of),
                },
                index=[f"cell{i:08d}" for i in range(start, start + len(kinds[part]))],
            )
            out.append(_counts(kinds[part], edges, depth, rng), {}, obs)


def _sizes(n: int, parts: int) -> list[int]:
    return [n // parts + (i < n % parts) for i in range(parts)]


def _counts(kinds: np.ndarray, edges: np.ndarray, depth: float, rng: np.random.Generator) -> sparse.csr_matrix:
    """Multinomial counts (n, G) of cells of the given kinds (n,), from cumulative shares (types, G)."""
    sizes = np.maximum(rng.lognormal(np.log(depth), 0.4, len(kinds)).astype(int), 50)
    row = np.repeat(np.arange(len(kinds)), sizes)
    gene = np.empty(len(row), dtype=np.int64)
    kind_of = kinds[row]
    for kind in np.unique(kinds):
        here = kind_of == kind
        gene[here] = np.searchsorted(edges[kind], rng.random(int(here.sum())) * edges[kind, -1])
    ones = np.ones(len(row), dtype=np.float32)
    return sparse.coo_matrix((ones, (row, gene)), shape=(len(kinds), edges.shape[1])).tocsr()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--donors", type=int, default=4)
    parser.add_argument("--depth", type=float, default=1200)
    options = parser.parse_args()
    write_atlas(options.path, options.cells, options.genes, donors=options.donors, depth=options.depth)

"""Split cells into those a model is trained on and those it must not see.

The split depends only on the data and the settings, so nothing is stored about single cells: neither a run nor
synthetic cells reveal whether a cell was in the training data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdiffkit._deprecated import MEMORY, renamed_keywords
from scdiffkit.config import HOLDOUT, PreprocessConfig, make
from scdiffkit.data.cells import digests_of, fingerprint
from scdiffkit.data.conditions import Conditions
from scdiffkit.errors import ConfigError, DataError, FileError, did_you_mean
from scdiffkit.io import Backed, CellWriter, check_output, columns, open_cells, write
from scdiffkit.preprocessing.join import RawCells, raw_cells
from scdiffkit.preprocessing.pipeline import Prepared, is_prepared, prepare

if TYPE_CHECKING:
    from anndata import AnnData

MIN_GROUPS = 2  # the smallest number of groups that can be split
FILTERS = ("min_counts", "max_counts", "min_genes", "max_genes", "max_mito", "mito_prefix", "min_cells")
Kind = Literal["holdout", "validation", "none"]
log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class TrainingData:
    """A record that identifies the training cells and the unseen cells of a run, without naming single cells.

    `fingerprint` is that of all given cells, see `data_fingerprint`, and `cells` is their number. `columns` are the obs
    columns that the model is conditioned on, and `label` is the one with the cell types. `holdout`, `holdout_by`,
    `val_fraction` and `seed` determine the split. `prepared` is True if `preprocess` had made the cells.
    `filters` are the filters of PreprocessConfig.
    """

    fingerprint: str
    cells: int
    columns: tuple[str, ...]
    label: str | None
    holdout: float
    holdout_by: str | None
    val_fraction: float
    seed: int
    prepared: bool
    filters: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for files, without values that are None, as files cannot hold these."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        values["filters"] = {key: value for key, value in self.filters.items() if value is not None}
        return values | {"columns": list(self.columns)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingData | None:
        """Read the dict of `to_dict`. Returns None for that of an older version."""
        if "fingerprint" not in values:
            return None
        known: Any = {field.name: columns.plain(values.get(field.name)) for field in fields(cls)}
        known["columns"] = tuple(known["columns"] or ())
        return cls(**known)

    def held_out(self, obs: pd.DataFrame) -> np.ndarray:
        """Return a mask (n,) of the given cells that are held out of all training."""
        return held_out(obs, self.holdout, by=self.holdout_by, within=self.columns, seed=self.seed, of=self.fingerprint)

    def find_in(self, cells: AnnData | Backed) -> SplitRows | None:
        """Return which of these cells the run has seen, or None if they are not the data of the run."""
        needed = [*self.columns, *([self.holdout_by] if self.holdout_by else [])]
        if any(column not in cells.obs for column in needed) or self.prepared != is_prepared(cells):
            return None
        try:
            raw = Prepared.of(cells) if self.prepared else raw_cells(cells, PreprocessConfig())
        except DataError:  # no raw counts
            return None
        if len(raw.obs) != self.cells or data_fingerprint(raw, needed) != self.fingerprint:
            return None
        held = self.held_out(raw.obs)
        learnt = np.flatnonzero(~held)
        rest = raw.take(learnt)
        places = learnt
        if isinstance(rest, RawCells):
            config = make(PreprocessConfig, **self.filters, hvg_flavor="all")
            rest = prepare(rest, config, label=self.columns, choose_genes=False)
            places = learnt[rest.rows]
        codes = Conditions.of(rest.obs, self.columns).encode(rest.obs)
        fitted, validated = (places[rows] for rows in split_for_validation(codes, self.val_fraction, self.seed))
        if held.any():
            return SplitRows("holdout", np.flatnonzero(held), fitted, self.holdout_by)
        return SplitRows("validation" if len(validated) else "none", validated, fitted)


@dataclass(frozen=True)
class SplitRows:
    """Indices of the unseen cells and the training cells in the data set of a run.

    With `kind` "holdout", unseen cells were held out from all stages of training; with
    "validation", only from the fit.
    """

    kind: Kind
    unseen: np.ndarray
    trained: np.ndarray
    by: str | None = None  # obs column whose groups were held out as a whole


def data_fingerprint(raw: RawCells | Prepared, columns: Sequence[str]) -> str:
    """Return a hash of raw counts, gene names and obs columns. It is the same in memory, on disk and on every machine.

    The hash shows whether two data sets are equal, but reveals nothing about single cells.
    """
    texts = ["\n".join([column, *map(str, raw.obs[column])]) for column in columns]
    return fingerprint("\n".join(map(str, raw.var.index)), *digests_of(raw.counts), *texts)


def held_out(
    obs: pd.DataFrame,
    fraction: float,
    *,
    by: str | None = None,
    within: Sequence[str] = (),
    seed: int = 0,
    of: str = "",
) -> np.ndarray:
    """Return a mask (n,) of the cells of obs (n rows) that are held out.

    A random fraction of each combination of the obs columns `within` is held out, or, with the obs column `by`, a
    fraction of its groups (donors) as a whole. The choice depends on the seed and the text `of`. At least one cell of
    each combination, or one group, is kept. Raises DataError if nothing can be held out.
    """
    if not fraction:
        return np.zeros(len(obs), dtype=bool)
    if not 0 < fraction < 1:
        raise ConfigError(f"The fraction of cells to hold out must lie between 0 and 1, not {fraction:g}.")
    rng = np.random.default_rng([seed, 6, *of.encode()])
    if by is not None:
        if by not in obs:
            raise DataError(f"There is no obs column {by!r} to hold out groups of; {did_you_mean(by, obs.columns)}")
        groups = obs[by].astype(str).to_numpy()
        names = np.unique(groups)
        if len(names) < MIN_GROUPS:
            raise DataError(f"obs column {by!r} has only one value, so there is no group of cells to hold out.")
        n = min(max(1, round(fraction * len(names))), len(names) - 1)
        return np.isin(groups, rng.permutation(names)[:n])
    held = np.zeros(len(obs), dtype=bool)
    combination = np.zeros(len(obs), dtype=int)
    if within:
        combination = obs[list(within)].astype(str).groupby(list(within)).ngroup().to_numpy()
    for i in np.unique(combination):
        rows = np.flatnonzero(combination == i)
        order = rng.permutation(len(rows))
        # Use evenly spaced points from a random start, so that rounding is unbiased for every combination.
        held[rows] = ((order + rng.random()) / len(rows) < fraction) & (order < len(rows) - 1)
    if not held.any():
        raise DataError(
            f"With a fraction of {fraction:g}, none of the {len(obs)} cells is held out: give a larger one."
        )
    return held


@renamed_keywords(**MEMORY)
def split(
    data: AnnData | str | Path,
    *,
    fraction: float = HOLDOUT,
    label: str | None = None,
    by: str | None = None,
    seed: int = 0,
    out: tuple[str | Path, str | Path] | None = None,
    memory: str | float = "auto",
    force: bool = False,
) -> tuple[AnnData, AnnData] | tuple[Path, Path]:
    """Split cells into a training set and a test set, for use with any tool.

    Parameters
    ----------
    data
        AnnData, or a file of cells in any format that `read` accepts.
    fraction
        Fraction of the cells, or of the groups of `by`, in the test set.
    label
        obs column to stratify by: its values have the same shares in both sets.
    by
        obs column, such as the donor, whose groups are kept together in one of the two sets.
    seed
        Random seed. Equal data, settings and seed give the same split.
    out
        Files for the training and the test cells. Their suffixes select the formats. Cells that do not fit into memory
        are copied in blocks (X, layers, obs and var).
    memory
        Where cells of h5ad and zarr files are kept: "ram", "disk", or "auto", which leaves them on disk if they do not
        fit into free memory. An amount such as "8G" sets the limit.
    force
        Replace the files of `out`.

    Returns
    -------
    The training and the test cells as AnnData, or the paths of the two files if `out` is given.

    Raises
    ------
    DataError
        If a column is missing or nothing can be held out.
    FileError
        If a file of `data` is missing, or a file of `out` exists (without `force`) or cannot be written.

    Examples
    --------
    >>> train, test = scdiffkit.split(adata, label="cell_type")
    """
    if label and by:
        raise ConfigError("Give --label (types keep their proportions) or --by (groups stay whole), not both.")
    if not fraction:
        raise ConfigError("--fraction 0 leaves no test cells: give a fraction between 0 and 1.")
    for path in out or ():
        check_output(Path(path), force=force)
    if out is not None and Path(out[0]).resolve() == Path(out[1]).resolve():
        raise ConfigError(f"Both sets of cells would go to {out[0]}: give two files.")
    _, cells = open_cells(data, memory)
    if isinstance(cells, dict):
        raise ConfigError("split takes one file of cells: split several files one by one.")
    if label is not None and label not in cells.obs:
        raise DataError(f"There is no obs column {label!r} (--label); {did_you_mean(label, cells.obs.columns)}")
    held = held_out(cells.obs, fraction, by=by, within=[label] if label else [], seed=seed)
    log.info("%d training cells, %d test cells", (~held).sum(), held.sum())
    rows = (np.flatnonzero(~held), np.flatnonzero(held))
    if isinstance(cells, Backed):
        if out is None:
            raise FileError("Cells that stay in their file can only be split into files: name two files with --out.")
        for path, some in zip(out, rows, strict=True):
            _copy(cells, some, Path(path), force=force)
    else:
        parts = tuple(cells[some].copy() for some in rows)
        if out is None:
            return parts
        for path, part in zip(out, parts, strict=True):
            write(part, path, force=force)
    return Path(out[0]), Path(out[1])


def _copy(cells: Backed, rows: np.ndarray, path: Path, *, force: bool) -> None:
    """Copy the cells `rows` of a file to another file, in blocks."""
    layers = {place[len('layers["') : -2]: place for place in cells.matrices if place.startswith("layers")}
    first = "X" if "X" in cells.matrices else next(iter(layers.values()), None)
    if first is None:
        raise DataError(f"{cells.path} has neither X nor layers: there is nothing to split.")
    uns = dict(cells.uns)
    with CellWriter(path, cells.var.index, var=cells.var, uns=uns, layers=tuple(layers), force=force) as out:
        out.lost += ["raw"] if "raw" in cells.matrices else []
        for start in range(0, len(rows), 2048):
            some = rows[start : start + 2048]
            of_layers = {name: cells.matrices[place][some] for name, place in layers.items()}
            out.append(cells.matrices[first][some], of_layers, cells.obs.iloc[some])


def split_for_validation(codes: np.ndarray, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted row indices for training and for validation of cells with codes (n, K).

    The seed determines the random split. A combination of conditions that training would not see otherwise has no
    validation cells.
    """
    n = len(codes)
    order = np.random.default_rng([seed, 1]).permutation(n)
    held_out = np.zeros(n, dtype=bool)
    held_out[order[: round(n * val_fraction)]] = True
    if codes.shape[1]:
        _, combination = np.unique(codes, axis=0, return_inverse=True)
        learnt = np.bincount(combination.ravel()[~held_out], minlength=n) > 0
        held_out &= learnt[combination.ravel()]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)

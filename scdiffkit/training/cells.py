"""Read and preprocess the training cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scdiffkit.config import PreprocessConfig, RunConfig
from scdiffkit.data.cells import TrainingCells, fingerprint
from scdiffkit.data.conditions import Conditions
from scdiffkit.data.split import FILTERS, TrainingData, data_fingerprint, split_for_validation
from scdiffkit.errors import ConfigError, DataError, did_you_mean, warn
from scdiffkit.io import Backed, CellsLike, open_cells
from scdiffkit.preprocessing.columns import FILE, check_label, with_columns
from scdiffkit.preprocessing.join import RawCells, raw_cells
from scdiffkit.preprocessing.pipeline import Prepared, is_prepared, prepare, prepared_config

log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class TrainingSet:
    """The preprocessed cells of a training.

    `train_rows` and `val_rows` index `cells`. `var` is the table of the codec's genes. `record` is what the run records
    of all given cells, including held-out ones. `source` names the files of the cells, None if they were in memory.
    """

    cells: TrainingCells
    train_rows: np.ndarray
    val_rows: np.ndarray
    conditions: Conditions
    var: pd.DataFrame
    record: TrainingData
    source: str | None

    @property
    def genes(self) -> list[str]:
        return [str(gene) for gene in self.var.index]

    @property
    def files(self) -> list[str]:
        return self.source.split(", ") if self.source else []

    def fingerprint(self, run_config: RunConfig) -> str:
        """Return a hash of the cells and their preprocessing. A run is resumed only with the same hash."""
        return fingerprint("\n".join(self.genes), self._settings(run_config), repr(self.record))

    def older_fingerprints(self, run_config: RunConfig) -> list[str]:
        """Return the hashes of older versions: before cells could be held out, and before they could stay on disk."""
        genes, settings, cells = "\n".join(self.genes), self._settings(run_config), self.cells
        found = [fingerprint(genes, settings, cells.digest())]
        if cells.on_disk:
            return found
        counts = sparse.csr_matrix(cells.counts[0 : len(cells)])
        counts.sort_indices()
        arrays = (counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64))
        settings = settings.replace(" join='inner'", "")
        return [*found, fingerprint(genes, settings, *arrays, cells.library_size, cells.codes)]

    def _settings(self, run_config: RunConfig) -> str:
        return f"{run_config.preprocess} {self.conditions.categories}"


def read_training_set(
    data: CellsLike, run_config: RunConfig, explicit: set[str], memory: str | float
) -> tuple[TrainingSet, RunConfig]:
    """Read and preprocess the cells. The returned configuration holds the preprocessing that was applied to them."""
    source, loaded = open_cells(data, memory)
    prepared, run_config, known = _prepare(loaded, run_config, explicit)
    del loaded  # frees the names of all cells
    highly_variable = run_config.codec.highly_variable
    conditions = Conditions.of(prepared.obs, run_config.conditions, prepared.uns)
    cells = TrainingCells.of(prepared, conditions, highly_variable=highly_variable)
    chosen = prepared.var["highly_variable"].to_numpy(dtype=bool) if highly_variable else slice(None)
    train_rows, val_rows = split_for_validation(cells.codes, run_config.train.val_fraction, run_config.seed)
    return TrainingSet(cells, train_rows, val_rows, conditions, prepared.var[chosen], known, source), run_config


def _prepare(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed], run_config: RunConfig, explicit: set[str]
) -> tuple[Prepared, RunConfig, TrainingData]:
    """Drop the held-out cells and preprocess the rest, unless the cells are preprocessed already.

    Also returns the configuration with the preprocessing of the cells, and what identifies all given cells. `explicit`
    are the preprocessing options that the user gave; ConfigError if preprocessed cells were prepared with other values.
    """
    c = run_config.train
    wanted = [*run_config.conditions, run_config.preprocess.batch_key, c.holdout_by]
    if isinstance(cells, Mapping):
        named, first = dict(cells), 0
        for name, part in cells.items():
            named[name] = with_columns(part, [column for column in wanted if column != FILE], first)
            first += part.n_obs
        cells = named
    else:
        cells = with_columns(cells, wanted)

    def training_data(of: RawCells | Prepared, config: PreprocessConfig) -> TrainingData:
        """Describe all cells, so call this before the held-out ones are dropped."""
        if c.holdout_by is not None and c.holdout_by not in of.obs:
            raise DataError(
                f"--holdout-by: there is no obs column {c.holdout_by!r}; {did_you_mean(c.holdout_by, of.obs.columns)}"
            )
        columns = [*run_config.conditions, *([c.holdout_by] if c.holdout_by else [])]
        return TrainingData(
            fingerprint=data_fingerprint(of, columns),
            cells=len(of.obs),
            columns=run_config.conditions,
            label=run_config.conditions[0] if run_config.conditions else None,
            holdout=c.holdout,
            holdout_by=c.holdout_by,
            val_fraction=c.val_fraction,
            seed=run_config.seed,
            prepared=isinstance(of, Prepared),
            filters={name: getattr(config, name) for name in FILTERS},
        )

    if isinstance(cells, Mapping) or not is_prepared(cells):
        log.info("preparing the raw counts (scdiff preprocess does this as a separate step)")
        choose = run_config.codec.highly_variable
        raw = raw_cells(cells, run_config.preprocess, run_config.conditions)
        for column in run_config.conditions:
            check_label(raw.obs, column)
        of_all = training_data(raw, run_config.preprocess)
        raw = raw.take(_left_to_train_on(raw.obs, of_all))
        prepared = prepare(raw, run_config.preprocess, label=run_config.conditions, choose_genes=choose)
        return prepared, run_config, of_all
    stored = prepared_config(cells)
    for key in sorted(explicit):
        name = key.removeprefix("preprocess.")
        was, asked = getattr(stored, name), getattr(run_config.preprocess, name)
        if asked != was:
            raise ConfigError(
                f"The data were prepared with {name} = {was!r}, not {asked!r}: leave the option out, or train on "
                "the raw counts."
            )
    for column in run_config.conditions:
        check_label(cells.obs, column)
    prepared = Prepared.of(cells)
    of_all = training_data(prepared, stored)
    prepared = prepared.take(_left_to_train_on(prepared.obs, of_all))
    return prepared, run_config.model_copy(update={"preprocess": stored}), of_all


def _left_to_train_on(obs: pd.DataFrame, of_all: TrainingData) -> np.ndarray:
    """Return the rows of obs that are not held out.

    Warns if holding out whole groups (`holdout_by`) removes all cells of a category. Raises DataError if a condition is
    left with one category.
    """
    held = of_all.held_out(obs)
    rows = np.flatnonzero(~held)
    if of_all.holdout_by is None:
        return rows
    groups = ", ".join(sorted(set(obs[of_all.holdout_by][held].astype(str)))[:5])
    for column in of_all.columns:
        values = obs[column].astype(str)
        left = set(values[~held])
        lost = ", ".join(sorted(set(values) - left))
        if not lost:
            continue
        said = f"With {of_all.holdout_by} {groups} held out, no training cell has {column} {lost}"
        if len(left) == 1:
            raise DataError(
                f"{said}, so {column!r} cannot be learnt: hold out groups that have cells of each {column} "
                "(--holdout-by, or another --seed), or single cells (--holdout without --holdout-by)."
            )
        warn(f"{said}: the model cannot generate such cells.")
    return rows

"""obs columns: checks of labels, colours, and selection of columns and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdiffkit.errors import DataError, did_you_mean
from scdiffkit.io import Backed

if TYPE_CHECKING:
    from anndata import AnnData

# obs columns that preprocessing adds
TOTAL = "total_counts"
FILE = "file"


def with_columns(cells: AnnData | Backed, wanted: Sequence[str | None], first: int = 0) -> AnnData | Backed:
    """Reduce obs of backed cells to the wanted columns and total_counts, to save memory with millions of cells.

    Cell names are replaced by numbers from `first` on. Cells in memory, and cells that lack one of the columns, are
    returned unchanged.
    """
    columns = list(dict.fromkeys(column for column in wanted if column))
    if not isinstance(cells, Backed) or any(column not in cells.obs for column in columns):
        return cells
    columns += [TOTAL] if TOTAL in cells.obs and TOTAL not in columns else []
    return replace(cells, obs=cells.obs[columns].set_axis(pd.RangeIndex(first, first + cells.n_obs)))


def colors_of(obs: pd.DataFrame, uns: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Convert scanpy's uns["COLUMN_colors"] to column -> category -> colour.

    Columns with another number of colours than categories are left out.
    """
    found = {}
    for column in obs.select_dtypes("category"):
        categories, colors = obs[column].cat.categories, uns.get(f"{column}_colors")
        if isinstance(colors, (list, tuple, np.ndarray)) and len(colors) == len(categories):
            found[str(column)] = {str(name): str(color) for name, color in zip(categories, colors, strict=True)}
    return found


def color_lists(
    categories: Mapping[str, Sequence[str]], colors: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """Convert colours back to uns["COLUMN_colors"], for columns in which every category has a colour."""
    return {
        f"{column}_colors": [colors[column][name] for name in names]
        for column, names in categories.items()
        if names and all(name in colors.get(column, {}) for name in names)
    }


def check_label(obs: pd.DataFrame, key: str) -> None:
    """Check that an obs column can label cells.

    Raises DataError if it is missing, has missing values, has only one value, or has a unique value in every cell.
    """
    if key not in obs:
        raise DataError(f"There is no obs column {key!r}; {did_you_mean(key, obs.columns)}")
    column = obs[key]
    missing, different = int(column.isna().sum()), int(column.nunique())
    if missing:
        raise DataError(
            f"obs column {key!r} has no value for {missing} of {len(column)} cells: fill them in, or drop these cells "
            f"(adata = adata[adata.obs[{key!r}].notna()])."
        )
    if different <= 1:
        value = repr(str(column.iloc[0])) if len(column) else "no cell"
        raise DataError(
            f"obs column {key!r} has only one value ({value}), so there is nothing to learn from it: leave it out."
        )
    if different == len(column):
        raise DataError(
            f"obs column {key!r} has a different value in each of the {different} cells, so it identifies cells "
            "rather than groups: choose a column such as the cell type."
        )


def check_columns(obs: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    for column in columns:
        if column not in obs and column != FILE:  # added when files are joined
            raise DataError(f"{name} has no obs column {column!r}; {did_you_mean(column, obs.columns)}")


def take_rows(obs: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Select rows of obs and remove unused categories, as AnnData does."""
    if len(rows) == len(obs):
        return obs
    obs = obs.iloc[rows].copy()
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    return obs

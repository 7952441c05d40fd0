"""Conditions: integer codes of obs columns, the composition of cells, and combinations that were never seen."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scdiffkit.errors import ConfigError, DataError, did_you_mean, warn
from scdiffkit.preprocessing.columns import color_lists, colors_of

log = logging.getLogger("scdiffkit")
MIN_PER_CATEGORY = 10  # a model learns next to nothing from fewer training cells


@dataclass(frozen=True)
class Conditions:
    """The condition columns, their categories in order, and the number of training cells of each combination.

    Code 0 means "unknown"; category i of a column has code i + 1. `colors` (column -> category -> colour) has the
    columns with scanpy's uns["COLUMN_colors"]. `ordered` are the columns with ordered categories.
    """

    categories: dict[str, list[str]]  # column -> categories
    combinations: list[tuple[tuple[int, ...], int]]  # (codes of the columns, number of cells)
    colors: dict[str, dict[str, str]] = field(default_factory=dict)
    ordered: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, obs: pd.DataFrame, columns: Sequence[str], uns: Mapping[str, Any] | None = None) -> Conditions:
        """Collect the categories that occur in `obs` (n rows), in their order, and count the combinations."""
        categories, ordered = {}, []
        for column in columns:
            values = obs[column].astype("category").cat.remove_unused_categories()
            categories[column] = [str(c) for c in values.cat.categories]
            ordered += [column] if values.cat.ordered else []
        found = cls(categories, [])
        codes, counts = np.unique(found.encode(obs), axis=0, return_counts=True)
        combinations = [(tuple(map(int, row)), int(n)) for row, n in zip(codes, counts, strict=True)]
        colors = {column: of for column, of in colors_of(obs, uns or {}).items() if column in categories}
        return cls(categories, combinations, colors, ordered)

    @property
    def columns(self) -> list[str]:
        return list(self.categories)

    @property
    def num_categories(self) -> list[int]:
        return [len(c) for c in self.categories.values()]

    def code(self, column: str, value: str) -> int:
        """Return the code of a category. Raises DataError, which suggests the most similar name, if it is unknown."""
        self.check_column(column)
        if value not in self.categories[column]:
            raise DataError(
                f"The run has never seen {column}={value!r}; {did_you_mean(value, self.categories[column])}"
            )
        return self.categories[column].index(value) + 1

    def check_column(self, column: str) -> None:
        """Raise DataError, with the most similar name and a remedy, if `column` is not a condition."""
        if column not in self.categories:
            raise DataError(
                f"The run was not trained with the condition {column!r}; {did_you_mean(column, self.categories)} "
                f"Train with --condition {column} to use it."
            )

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the codes (n, K) of `obs`. Raises DataError for a category that was not seen in training."""
        codes = np.zeros((len(obs), len(self.categories)), dtype=np.int64)
        for k, column in enumerate(self.categories):
            if column not in obs:
                raise DataError(f"There is no obs column {column!r}; {did_you_mean(column, obs.columns)}")
            values = obs[column].astype("category")
            of_category = [self.code(column, str(c)) if (values == c).any() else 0 for c in values.cat.categories]
            if values.isna().any():
                raise DataError(f"obs column {column!r} has {values.isna().sum()} missing values; drop or fill them.")
            codes[:, k] = np.asarray(of_category, dtype=np.int64)[values.cat.codes.to_numpy()]
        return codes

    def decode(self, codes: np.ndarray) -> pd.DataFrame:
        """Convert codes (n, K) to categorical columns with the categories of training; "unknown" becomes missing."""
        return pd.DataFrame(
            {
                column: pd.Categorical.from_codes(
                    codes[:, k] - 1, categories=pd.Index(categories, dtype=object), ordered=column in self.ordered
                )
                for k, (column, categories) in enumerate(self.categories.items())
            },
            index=range(len(codes)),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "categories": self.categories,
            "combinations": [{"codes": list(codes), "cells": n} for codes, n in self.combinations],
            "colors": self.colors,
            "ordered": self.ordered,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conditions:
        combinations = [(tuple(c["codes"]), c["cells"]) for c in values["combinations"]]
        return cls(
            dict(values["categories"]), combinations, dict(values.get("colors", {})), list(values.get("ordered", []))
        )

    def present(self, codes: np.ndarray) -> Present:
        """Return the categories that occur in codes (n, K)."""
        return Present(
            {
                column: [categories[code - 1] for code in np.unique(codes[:, k]) if code]
                for k, (column, categories) in enumerate(self.categories.items())
            },
            self.colors,
        )

    def remarks(self, codes: np.ndarray) -> list[str]:
        """Return remarks on cells drawn with codes (n, K): combinations that are extrapolated or have few cells."""
        found = []
        drawn = list(map(tuple, np.unique(codes, axis=0).tolist()))
        seen = {c for c, _ in self.combinations}
        unseen = [c for c in drawn if c not in seen]
        if unseen:
            found.append(
                f"Extrapolated: no training cell had {self._named(range(len(self.columns)), unseen)}, so the "
                "training data cannot show how well the model draws such cells."
            )
        few = [
            f"{n} of {column}={self.categories[column][code - 1]}"
            for k, column in enumerate(self.columns)
            for code in sorted({c[k] for c in drawn} - {0})
            if (n := sum(cells for c, cells in self.combinations if c[k] == code)) < MIN_PER_CATEGORY
        ]
        if few:
            found.append(
                f"Few training cells: {listed_briefly(few)}. Generated cells of these categories are unreliable."
            )
        return found

    def compose(self, n: int, where: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
        """Return codes (n, K) with the training composition, restricted to `where` (column -> allowed values).

        Numbers are rounded by largest remainders. If training cells had some of the requested combinations, only these
        are drawn. If they had none, all are drawn, with a ScdiffWarning: their shares assume that the requested columns
        are independent, and the other columns follow the training cells that match most of the requested values.
        Raises DataError for an unknown column or value, and ConfigError for a column without values or a repeated
        value.
        """
        allowed = {column: self._codes(column, values) for column, values in (where or {}).items()}
        columns = [self.columns.index(column) for column in allowed]
        kept: list[tuple[tuple[int, ...], float]] = []
        seen = set()
        for codes, cells in self.combinations:
            asked = tuple(codes[k] for k in columns)
            if all(code in values for code, values in zip(asked, allowed.values(), strict=True)):
                kept.append((codes, cells))
                seen.add(asked)
        unseen = [asked for asked in itertools.product(*allowed.values()) if asked not in seen]
        if not kept:
            self._warn_of_extrapolation(columns, unseen)
            kept = [part for asked in unseen for part in self._extrapolated(dict(zip(columns, asked, strict=True)))]
        elif unseen:
            log.info(
                "No training cell had %s, so no such cells are drawn; to draw them, ask for this combination alone",
                self._named(columns, unseen),
            )
        return self.apportion(n, kept)

    def _codes(self, column: str, values: Sequence[str]) -> list[int]:
        """Return the codes of the values that `where` requests in one column."""
        if not values:
            self.check_column(column)
            raise ConfigError(f"--where names no value of {column!r}: give at least one, or leave the column out.")
        for value in values:
            if values.count(value) > 1:
                raise ConfigError(
                    f"--where names {column}={value} more than once: give each value once. Several values of a "
                    "column are drawn in the proportions of the training cells."
                )
        return [self.code(column, value) for value in values]

    def _extrapolated(self, asked: Mapping[int, int]) -> list[tuple[tuple[int, ...], float]]:
        """Return codes and shares with which to draw a combination (column index -> code) that no training cell had.

        The shares add up to that of the combination if its columns were independent, so more frequent values get more
        cells.
        """
        total = sum(cells for _, cells in self.combinations)
        share = math.prod(
            sum(cells for codes, cells in self.combinations if codes[k] == code) / total for k, code in asked.items()
        )
        matches = [sum(codes[k] == code for k, code in asked.items()) for codes, _ in self.combinations]
        closest = [self.combinations[i] for i, m in enumerate(matches) if m == max(matches)]
        of_closest = sum(cells for _, cells in closest)
        shares: dict[tuple[int, ...], float] = {}
        for codes, cells in closest:
            drawn = tuple(asked.get(k, code) for k, code in enumerate(codes))
            shares[drawn] = shares.get(drawn, 0.0) + share * cells / of_closest
        return list(shares.items())

    def _warn_of_extrapolation(self, columns: Sequence[int], unseen: Sequence[tuple[int, ...]]) -> None:
        warn(
            f"No training cell had {self._named(columns, unseen)}: the model extrapolates from cells with these "
            "values in other combinations, and the training data cannot show how well."
        )

    def _named(self, columns: Sequence[int], combinations: Sequence[tuple[int, ...]], at_most: int = 5) -> str:
        """Format codes of the columns with these indices: "cell_type=B and condition=stim, or ..."."""
        named = [
            " and ".join(
                f"{self.columns[k]}={self.categories[self.columns[k]][code - 1]}"
                for k, code in zip(columns, codes, strict=True)
            )
            for codes in combinations[:at_most]
        ]
        more = len(combinations) - at_most
        return ", or ".join(named) + (f", or {more} more combinations" if more > 0 else "")

    def composition_of(self, obs: pd.DataFrame, n: int | None = None) -> np.ndarray:
        """Return codes (n, K) with the composition of `obs`. The default n is its number of cells.

        Warns (ScdiffWarning) about combinations that no training cell had. Raises DataError for an unknown value.
        """
        if not len(obs):
            raise DataError("There are no cells whose composition could be copied.")
        codes, counts = np.unique(self.encode(obs), axis=0, return_counts=True)
        shares = [(tuple(map(int, c)), int(m)) for c, m in zip(codes, counts, strict=True)]
        seen = {c for c, _ in self.combinations}
        unseen = [c for c, _ in shares if c not in seen]
        if unseen:
            self._warn_of_extrapolation(range(len(self.columns)), unseen)
        return self.apportion(n or len(obs), shares)

    def apportion(self, n: int, combinations: Sequence[tuple[tuple[int, ...], float]]) -> np.ndarray:
        """Return n rows of codes in the given proportions, rounded by largest remainders."""
        shares = np.array([cells for _, cells in combinations], dtype=np.float64)
        exact = n * shares / shares.sum()
        rows = np.floor(exact).astype(int)
        for i in np.argsort(-(exact - rows), kind="stable")[: n - rows.sum()]:
            rows[i] += 1
        codes = np.array([codes for codes, _ in combinations], dtype=np.int64).reshape(len(combinations), -1)
        return np.repeat(codes, rows, axis=0)


@dataclass(frozen=True)
class Present:
    """The categories that occur in synthetic cells, in order, and the colours of all categories."""

    categories: dict[str, list[str]]  # column -> categories
    colors: dict[str, dict[str, str]]

    def drop_absent(self, obs: pd.DataFrame) -> None:
        """Drop categories without cells from obs, because scanpy and Seurat would treat each as a group."""
        for column, categories in self.categories.items():
            obs[column] = obs[column].cat.set_categories(pd.Index(categories, dtype=object))

    def uns(self) -> dict[str, list[str]]:
        """Return uns["COLUMN_colors"] in scanpy's format, one colour per category."""
        return color_lists(self.categories, self.colors)


def listed_briefly(texts: Sequence[str], at_most: int = 10) -> str:
    return ", ".join(texts[:at_most]) + (f", and {len(texts) - at_most} more" if len(texts) > at_most else "")

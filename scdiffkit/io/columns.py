"""Encoding of obs and var columns for formats that hold only text and numbers, and decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Spec = dict[str, dict[str, Any]]


def encode(frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], Spec, list[str]]:
    """Encode columns as arrays of str, bool or numbers; also return the spec for `decode` and a list of losses."""
    values: dict[str, np.ndarray] = {}
    spec: Spec = {}
    lost: list[str] = []
    for name, column in frame.items():
        key = str(name)
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories = column.cat.categories
            labels = [str(c) for c in categories]
            absent = next(a for a in ("", "missing", "<missing>") if a not in labels)
            values[key] = np.array([*labels, absent], dtype=object)[column.cat.codes.to_numpy()]
            spec[key] = {
                "kind": "categorical",
                "categories": [plain(c) for c in categories],
                "ordered": bool(column.cat.ordered),
            }
        elif pd.api.types.is_bool_dtype(column.dtype) and not column.hasnans:
            values[key], spec[key] = column.to_numpy(dtype=bool), {"kind": "bool"}
        elif pd.api.types.is_numeric_dtype(column.dtype) and column.dtype.kind != "c":
            numpy_dtype = column.dtype if isinstance(column.dtype, np.dtype) else np.dtype(float)
            values[key] = column.to_numpy(dtype=numpy_dtype)
            spec[key] = {"kind": "number", "dtype": values[key].dtype.str}
        else:
            if column.hasnans:
                lost.append(f"missing values in {key!r} (written as empty text)")
            values[key] = np.array(["" if m else str(v) for v, m in zip(column, column.isna())], dtype=object)
            spec[key] = {"kind": "text"}
    return values, spec, lost


def decode(values: Any, spec: dict[str, Any]) -> Any:
    """Restore a column passed to `encode` from its values (text or numbers as returned by the format)."""
    kind = spec["kind"]
    if kind == "categorical":
        codes = pd.Categorical(values, categories=[str(c) for c in spec["categories"]]).codes
        return pd.Categorical.from_codes(codes, categories=spec["categories"], ordered=spec["ordered"])
    if kind == "bool":
        return np.array([v in (True, "True") for v in values], dtype=bool)
    if kind == "number":
        dtype = np.dtype(spec["dtype"])
        parse = float if dtype.kind == "f" else int
        return np.array([parse("nan") if v == "" else parse(v) for v in values], dtype=dtype)
    return np.asarray(values, dtype=object)


def lost_of_uns(uns: Mapping[str, Any], kept: Sequence[str]) -> list[str]:
    """List the entries of uns that a format drops, except scanpy's colours and log1p mark, which can be restored."""
    return [f"uns[{key!r}]" for key in uns if key not in kept and key != "log1p" and not key.endswith("_colors")]


def plain(value: Any) -> Any:
    """Convert numpy and pandas types in `value` to Python's own, for JSON."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, pd.Index, pd.Series)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

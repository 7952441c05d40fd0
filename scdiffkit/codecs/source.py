"""Where a codec reads its training cells."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scdiffkit.io import Rows
from scdiffkit.runtime.prefetch import prefetch


class CellSource(Protocol):
    """n cells by row: raw counts (n, G) in memory or in files, library sizes (n,), condition codes (n, K)."""

    @property
    def counts(self) -> Rows: ...
    @property
    def library_size(self) -> np.ndarray: ...
    @property
    def codes(self) -> np.ndarray: ...
    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Raw counts (B, G), dense, library sizes (B,) and condition codes (B, K) of the cells in `rows`."""
        ...

    def take(self, rows: np.ndarray) -> CellSource:
        """Some of the cells, in memory."""
        ...

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: Sequence[int]
    ) -> Generator[tuple[np.ndarray, CellSource]]:
        """Endless batches of `rows` in random order: places (B,) in `rows`, and the cells, in memory."""
        ...


def batches(cells: CellSource, rows: np.ndarray, size: int = 1024) -> Iterator[CellSource]:
    """All `rows` in order, `size` cells at a time, in memory; the next are read while one batch is worked on."""
    return prefetch(cells.take(rows[start : start + size]) for start in range(0, len(rows), size))

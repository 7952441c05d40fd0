"""The interface through which codecs read training cells."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scdiffkit.io import Rows
from scdiffkit.runtime.prefetch import prefetch


class CellSource(Protocol):
    """n cells: raw counts (n, G) in memory or on disk, library sizes (n,) and condition codes (n, K)."""

    @property
    def counts(self) -> Rows: ...
    @property
    def library_size(self) -> np.ndarray: ...
    @property
    def codes(self) -> np.ndarray: ...
    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Return dense raw counts (B, G), library sizes (B,) and condition codes (B, K) of the cells in `rows`."""
        ...

    def take(self, rows: np.ndarray) -> CellSource:
        """Load the cells in `rows` into memory."""
        ...

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: Sequence[int]
    ) -> Generator[tuple[np.ndarray, CellSource]]:
        """Yield endless shuffled batches: the positions (B,) of cells in `rows`, and these cells in memory."""
        ...


def batches(cells: CellSource, rows: np.ndarray, size: int = 1024) -> Iterator[CellSource]:
    """Yield the cells `rows` in order, `size` at a time, in memory. The next batch is prefetched."""
    return prefetch(cells.take(rows[start : start + size]) for start in range(0, len(rows), size))

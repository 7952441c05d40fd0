"""Where a codec reads its training cells."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scdiffkit.io import ahead


class Source(Protocol):
    """Cells by row."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Raw counts (B, G), library sizes (B,) and condition codes (B, K) of the cells in `rows`."""
        ...

    def take(self, rows: np.ndarray) -> Source:
        """Some of the cells, in memory."""
        ...

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: Sequence[int], device: torch.device | str = "cpu"
    ) -> Generator[tuple[np.ndarray, tuple[Tensor, Tensor, Tensor]]]:
        """Endless batches of `rows` in random order: places (B,) in `rows`, and what `batch` gives of these."""
        ...


def batches(
    cells: Source, rows: np.ndarray, size: int = 1024, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All `rows` in order, `size` cells at a time; the next are made while one batch is worked on."""
    return ahead(cells.batch(rows[start : start + size], device) for start in range(0, len(rows), size))

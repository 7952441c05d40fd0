"""Where a codec reads its training cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Source(Protocol):
    """Cells by row."""

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Raw counts (B, G), library sizes (B,) and condition codes (B, K) of the cells in `rows`."""
        ...


def batches(
    cells: Source, rows: np.ndarray, size: int = 1024, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All `rows` in order, `size` cells at a time."""
    for start in range(0, len(rows), size):
        yield cells.batch(rows[start : start + size], device)

"""What every codec provides, and what the others may rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from scdiffkit.codecs.source import CellSource

# Called at times while a codec is fitted, with step, steps, loss, loss on held-out cells, and cells seen so far; when
# it returns True, fitting ends.
OnStep = Callable[[int, int, float, float | None, int], bool | None]


class Codec(Protocol):
    """Raw counts (B, G) and library sizes (B,), given condition codes (B, K) <-> x0 (B, D)."""

    name: ClassVar[str]
    compact: ClassVar[
        bool
    ]  # whether D is far below G: x0 are computed once for all cells, and decoding loses something
    takes_library_size: ClassVar[bool]  # whether it decodes at a library size that is asked for
    target_sum: float

    def __init__(
        self, config: Any, num_genes: int, target_sum: float, num_categories: Sequence[int] = (), **settings: Any
    ) -> None: ...

    @property
    def dim(self) -> int:
        """D, the length of the diffused vector."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of x0."""
        ...

    def fit(
        self,
        cells: CellSource,
        rows: np.ndarray,
        val_rows: np.ndarray,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_step: OnStep | None = None,
    ) -> None:
        """Learn from the training cells `rows`; the held-out `val_rows`, if any, may say when to stop."""
        ...

    def posteriors(
        self, cells: CellSource, rows: np.ndarray, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Mean and standard deviation (B, D) of x0 of all the training cells `rows`, in order, a block at a time.

        The deviation is None where x0 follows from the cell.
        """
        ...

    def encode(
        self,
        counts: Tensor,
        library_size: Tensor,
        codes: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        fold: Tensor | None = None,
    ) -> Tensor:
        """x0 (B, D), drawn where it does not follow from the cell. fold (B,): of training cells, see `folds`."""
        ...

    def folds(self, n: int) -> np.ndarray | None:
        """The fold of each of n training cells in their order, of a codec that cross-fits."""
        ...

    def decode(
        self,
        x0: Tensor,
        codes: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raw counts (B, G), integers in float32, and library sizes (B,); library_size: asked for, if it takes them."""
        ...

    def library_size(self, x0: Tensor) -> Tensor:
        """The library sizes (B,) that x0 (B, D) tells, of a codec that takes them."""
        ...

    def library_sizes(self) -> tuple[float, float]:
        """Median and largest library size of the training cells, of a codec that takes them."""
        ...

    def spike_slab(self) -> tuple[float, Tensor, Tensor, Tensor]:
        """x0 of a coordinate as spike or slab, of a codec of genes: see GeneCodec. Raises ConfigError for others."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that `fit` learnt."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def settings(self) -> dict[str, Any]:
        """What a run must record, beside the configuration, to build this codec again."""
        ...

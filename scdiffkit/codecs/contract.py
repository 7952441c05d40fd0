"""The protocol that every codec implements and all other code relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from scdiffkit.codecs.source import CellSource

# Callback of `fit`, called at intervals with the step, the number of steps, the loss, the held-out loss and the number
# of cells seen so far. If it returns True, fitting ends.
OnStep = Callable[[int, int, float, float | None, int], bool | None]


class Codec(Protocol):
    """Maps raw counts (B, G) and library sizes (B,) to x0 (B, D) and back, given condition codes (B, K)."""

    name: ClassVar[str]
    compact: ClassVar[bool]  # whether D is far below G, so that x0 can be cached and decoding is lossy
    takes_library_size: ClassVar[bool]  # whether `decode` accepts library sizes
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
        """Fit to the training cells `rows`. Held-out cells `val_rows`, if any, may be used for early stopping."""
        ...

    def posteriors(
        self, cells: CellSource, rows: np.ndarray, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield mean and standard deviation (B, D) of x0 for blocks of the training cells `rows`, in order.

        The standard deviation is None if x0 is a deterministic function of the cell.
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
        """Return x0 (B, D), sampled unless it is deterministic. `fold` (B,) is for training cells, see `folds`."""
        ...

    def folds(self, n: int) -> np.ndarray | None:
        """Return the folds (n,) of n training cells, in order; None if the codec does not cross-fit."""
        ...

    def decode(
        self,
        x0: Tensor,
        codes: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return raw counts (B, G), integers in float32, and library sizes (B,): the given ones if supported."""
        ...

    def library_size(self, x0: Tensor) -> Tensor:
        """Return the library sizes (B,) encoded in x0 (B, D), for a codec that takes library sizes."""
        ...

    def library_sizes(self) -> tuple[float, float]:
        """Return median and largest library size of the training cells, for a codec that takes library sizes."""
        ...

    def spike_slab(self) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the parameters of a spike-slab head, see GeneCodec. Other codecs raise ConfigError."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that `fit` learnt."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def settings(self) -> dict[str, Any]:
        """Return what a run must record, besides the configuration, to build this codec again."""
        ...

"""Training cells: batches of counts, library sizes and condition codes, from memory or from files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scdiffkit.data.conditions import Conditions
from scdiffkit.errors import DataError
from scdiffkit.io import Rows, Selected, on_disk
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.columns import TOTAL
from scdiffkit.preprocessing.pipeline import Prepared
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.prefetch import prefetch

log = logging.getLogger("scdiffkit")
LIBRARY_SIZE = TOTAL  # the obs column of prepared and of synthetic cells
BLOCK = 64  # cells read together when training reads from files
BUFFER = 8192  # cells that are mixed then


@dataclass(frozen=True)
class TrainingCells:
    """Training cells: raw counts of the codec's genes (n, G), library sizes (n,), condition codes (n, K).

    The counts are in memory, or read from files when asked for.
    """

    counts: Rows
    library_size: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, prepared: Prepared, conditions: Conditions, *, highly_variable: bool) -> TrainingCells:
        """All genes, and library sizes over them; or the highly variable ones, and library sizes over all.

        Library sizes over the genes that are there differ from those of when cells were prepared, where genes were
        left out since then. DataError when a cell has no counts.
        """
        counts: Rows = prepared.counts
        stored = prepared.obs[TOTAL].to_numpy(dtype=np.float32)
        library_size = stored if highly_variable else prepared.totals.astype(np.float32)
        if highly_variable:
            counts = Selected(counts, None, np.flatnonzero(prepared.var["highly_variable"].to_numpy(dtype=bool)))
        if (library_size == 0).any():
            n, others = int((library_size == 0).sum()), (stored[library_size == 0] > 0).any()
            if others:
                raise DataError(
                    f"{n} cells have no counts in the {len(prepared.var)} genes of the data: drop them, or keep more "
                    "genes."
                )
            raise DataError(f"{n} cells have no counts at all: drop them (--min-counts 1 does).")
        if not np.allclose(library_size, stored, rtol=1e-6):
            log.info(
                "Library sizes are sums over the %d genes of the data; genes left out earlier are not counted",
                len(prepared.var),
            )
        if not on_disk(counts):
            counts = counts[0 : counts.shape[0]]
        return cls(counts, library_size, conditions.encode(prepared.obs))

    @property
    def on_disk(self) -> bool:
        return on_disk(self.counts)

    def __len__(self) -> int:
        return self.counts.shape[0]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Counts (B, G) dense float32, library sizes (B,), codes (B, K) of the cells in `rows`."""
        arrays = (self.counts[rows].toarray(), self.library_size[rows], self.codes[rows])
        return tuple(to_device(a, device) for a in arrays)  # type: ignore[return-value]

    def take(self, rows: np.ndarray) -> TrainingCells:
        """Some of the cells, in memory."""
        return TrainingCells(self.counts[rows], self.library_size[rows], self.codes[rows])

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: Sequence[int]
    ) -> Generator[tuple[np.ndarray, TrainingCells]]:
        """Endless batches of `rows` in random order: places (B,) in `rows`, and the cells, in memory.

        In memory: all shuffled, epoch after epoch. From files: blocks of BLOCK neighbours in random order, and cells
        of BUFFER of them mixed, the next read while one is worked on (scDataset, D'Ascenzo & Cultrera di Montesano
        2025).
        """
        if not self.on_disk:
            rng, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
            while True:
                while len(order) < batch_size:  # next epoch; more than one where cells are fewer than a batch
                    order = np.concatenate([order, rng.permutation(len(rows))])
                places, order = order[:batch_size], order[batch_size:]
                yield places, self.take(rows[places])
        from scdataset import BlockShuffling, scDataset

        def fetch(cells: TrainingCells, places: np.ndarray) -> tuple[np.ndarray, TrainingCells]:
            fetched = places, cells.take(rows[places])
            trim_memory()
            return fetched

        fetch_factor = max(1, BUFFER // batch_size)
        dataset = scDataset(
            self,
            BlockShuffling(BLOCK, indices=np.arange(len(rows))),
            batch_size,
            fetch_factor,
            drop_last=len(rows) >= batch_size,
            fetch_callback=fetch,
            batch_callback=lambda fetched, at: (fetched[0][at], fetched[1].take(at)),
            rank=0,
            world_size=1,
            seed=int(np.random.SeedSequence(list(seed)).generate_state(1)[0]),
        )
        while True:  # an epoch each
            yield from prefetch(iter(dataset), fetch_factor)

    def digest(self) -> str:
        """A hash of everything, the same in memory and in files."""
        return fingerprint(*digests_of(self.counts), self.library_size, self.codes)


def digests_of(counts: Rows) -> list[str]:
    """Hashes of the values, of the places of genes and of the lengths of the rows of counts (n, G), in memory or in a
    file."""
    parts = [hashlib.blake2b(digest_size=16) for _ in range(3)]
    for _, block in iter_row_blocks(counts):
        block.sort_indices()
        for part, values in zip(parts, (block.data, block.indices, np.diff(block.indptr)), strict=True):
            part.update(values.astype(np.float32 if values.dtype.kind == "f" else np.int64).tobytes())
    return [part.hexdigest() for part in parts]


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on a device; pinned on its way to a GPU, where others wait for all that is computed."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def rows_of_step(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """The cells, as positions in 0..n-1, that training step `step` sees: shuffled anew every epoch.

    A function of its arguments alone, so that a resumed run goes on exactly where it stopped.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch, place = position // n, position % n
    return np.concatenate([_order_of_epoch(seed, e, n)[place[epoch == e]] for e in range(epoch[0], epoch[-1] + 1)])


@lru_cache(maxsize=2)  # one order serves all steps of an epoch
def _order_of_epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, epoch]).permutation(n)


def fingerprint(*parts: str | np.ndarray) -> str:
    """A short hash of texts and arrays, the same on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()

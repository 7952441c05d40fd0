"""Training cells: batches of counts, library sizes and condition codes, from memory or from disk."""

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
LIBRARY_SIZE = TOTAL  # the obs column of preprocessed and of synthetic cells
BLOCK = 64  # adjacent cells that are read together from disk
BUFFER = 8192  # cells from random blocks that are shuffled together


@dataclass(frozen=True)
class TrainingCells:
    """Training cells: raw counts of the codec's genes (n, G), library sizes (n,), condition codes (n, K).

    The counts are in memory, or are read from disk on access.
    """

    counts: Rows
    library_size: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, prepared: Prepared, conditions: Conditions, *, highly_variable: bool) -> TrainingCells:
        """Take all genes, with library sizes over these, or highly variable genes, with the stored library sizes.

        Library sizes over the genes differ from the stored ones if genes were dropped after preprocessing. Raises
        DataError if a cell has no counts.
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
        """Return counts (B, G) dense float32, library sizes (B,) and codes (B, K) of the cells in `rows`."""
        arrays = (self.counts[rows].toarray(), self.library_size[rows], self.codes[rows])
        return tuple(to_device(a, device) for a in arrays)  # type: ignore[return-value]

    def take(self, rows: np.ndarray) -> TrainingCells:
        """Load the cells in `rows` into memory."""
        return TrainingCells(self.counts[rows], self.library_size[rows], self.codes[rows])

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: Sequence[int]
    ) -> Generator[tuple[np.ndarray, TrainingCells]]:
        """Yield endless shuffled batches: the positions (B,) of cells in `rows`, and these cells in memory.

        In memory, all cells are shuffled in each epoch. From disk, blocks of BLOCK adjacent cells are read in random
        order, and about BUFFER cells at a time are shuffled, with prefetching (scDataset, D'Ascenzo & Cultrera di
        Montesano 2025).
        """
        if not self.on_disk:
            rng, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
            while True:
                while len(order) < batch_size:  # next epoch, or several if a batch has more cells than there are
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
        while True:  # one iteration per epoch
            yield from prefetch(iter(dataset), fetch_factor)

    def digest(self) -> str:
        """Return a hash of everything, which is the same in memory and on disk."""
        return fingerprint(*digests_of(self.counts), self.library_size, self.codes)


def digests_of(counts: Rows) -> list[str]:
    """Return hashes of the values, column indices and row lengths of counts (n, G), in memory or on disk."""
    parts = [hashlib.blake2b(digest_size=16) for _ in range(3)]
    for _, block in iter_row_blocks(counts):
        block.sort_indices()
        for part, values in zip(parts, (block.data, block.indices, np.diff(block.indptr)), strict=True):
            part.update(values.astype(np.float32 if values.dtype.kind == "f" else np.int64).tobytes())
    return [part.hexdigest() for part in parts]


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Copy an array to a device. For a GPU it is pinned, since other copies would wait for all running kernels."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def rows_of_step(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """Return the positions, in 0..n-1, of the cells of training step `step`. Each epoch is shuffled separately.

    The result depends only on the arguments, so a resumed run continues exactly where it stopped.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch, place = position // n, position % n
    return np.concatenate([_order_of_epoch(seed, e, n)[place[epoch == e]] for e in range(epoch[0], epoch[-1] + 1)])


@lru_cache(maxsize=2)  # all steps of an epoch share one order
def _order_of_epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, epoch]).permutation(n)


def fingerprint(*parts: str | np.ndarray) -> str:
    """Return a short hash of texts and arrays, which is the same on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()

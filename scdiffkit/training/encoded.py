"""The encoded training cells (x0), on which diffusion trains: in memory, or memory-mapped from cached arrays."""

from __future__ import annotations

import json
import logging
import mmap
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scdiffkit.codecs import Codec
from scdiffkit.data.cells import TrainingCells, to_device
from scdiffkit.io import atomic_path
from scdiffkit.io.atomic import writing

Values = Tensor | np.ndarray
COMPLETE = "vectors.json"
SHARE_OF_GPU = 0.2  # largest share of a GPU's free memory for x0 of all cells
BYTES_ON_CPU = 1 << 28  # the limit on a CPU: x0 are many times as large as the counts
CELLS_AT_ONCE = 1024
log = logging.getLogger("scdiffkit")


class EncodedCells(Protocol):
    """The x0 and condition codes of the n training cells."""

    def __len__(self) -> int: ...

    def batch(self, places: np.ndarray, mine: slice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return x0 of the cells at `places[mine]`, and the condition codes (B, K) at all `places` (B,).

        Random numbers are drawn for all places, so a batch does not depend on the number of processes that share it.
        """
        ...


class Posteriors:
    """The posterior of each cell, computed once. Every batch draws new samples from it.

    `mean` and `deviation` are (n, D), `codes` (n, K), as tensors or memory-mapped arrays. Without a deviation, x0 is
    the mean.
    """

    def __init__(self, mean: Values, deviation: Values | None, codes: Values, device: torch.device) -> None:
        self.mean, self.deviation, self.codes, self.device = mean, deviation, codes, device

    def __len__(self) -> int:
        return len(self.mean)

    def batch(self, places: np.ndarray, mine: slice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = self._at(self.mean, places[mine])
        if self.deviation is not None:
            noise = torch.randn((len(places), x0.shape[1]), generator=generator, device=self.device)
            x0 = x0 + noise[mine] * self._at(self.deviation, places[mine])
        return x0, self._at(self.codes, places)

    def _at(self, values: Values, places: np.ndarray) -> Tensor:
        if isinstance(values, Tensor):
            return values[to_device(places, values.device)]
        return to_device(_rows(values, places), self.device)


class EncodedOnDemand:
    """Cells that are encoded batch by batch, for a codec whose x0 has one value per gene."""

    def __init__(self, codec: Codec, cells: TrainingCells, rows: np.ndarray | None, device: torch.device) -> None:
        self.codec, self.cells, self.device = codec, cells, device
        self.rows = np.arange(len(cells)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, places: np.ndarray, mine: slice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._encoded(places[mine]), to_device(self.cells.codes[self.rows[places]], self.device)

    def at_once(self) -> Tensor:
        """Return x0 (n, D) of all cells."""
        x0 = torch.empty(len(self), self.codec.dim, device=self.device)
        for places in np.split(np.arange(len(self)), range(CELLS_AT_ONCE, len(self), CELLS_AT_ONCE)):
            x0[places[0] : places[-1] + 1] = self._encoded(places)
        return x0

    def _encoded(self, places: np.ndarray) -> Tensor:
        counts, library_size, _ = self.cells.batch(self.rows[places], self.device)
        return self.codec.encode(counts, library_size)


def in_memory(codec: Codec, cells: TrainingCells, rows: np.ndarray, device: torch.device) -> EncodedCells:
    """Encode the training cells `rows` once, if the device has ample memory for all; else batch by batch."""
    codes = to_device(cells.codes[rows], device)
    if not codec.compact:
        encoded, room = EncodedOnDemand(codec, cells, rows, device), float(BYTES_ON_CPU)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # count memory that an earlier training cached as free
            room = SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]
        if 4 * len(rows) * codec.dim > room:
            return encoded
        return Posteriors(encoded.at_once(), None, codes, device)
    means, deviations = zip(*codec.posteriors(cells, rows, device), strict=True)
    deviation = None if any(part is None for part in deviations) else torch.cat(deviations)
    return Posteriors(torch.cat(means), deviation, codes, device)


def write(codec: Codec, cells: TrainingCells, rows: np.ndarray, folder: Path, device: torch.device) -> None:
    """Cache the encoded training cells in `folder`, in constant memory. The folder appears once it is complete.

    Raises FileError, and leaves no files, if they cannot be written.
    """
    n = len(rows)
    remove(folder)
    with writing(folder), atomic_path(folder) as temporary:
        temporary.mkdir()
        if codec.compact:
            with (
                _Array(temporary / "mean.npy", (n, codec.dim)) as mean,
                _Array(temporary / "deviation.npy", (n, codec.dim)) as deviation,
            ):
                for m, d in codec.posteriors(cells, rows, device):
                    mean.append(m.cpu().numpy())
                    deviation.append((torch.zeros_like(m) if d is None else d).cpu().numpy())
        else:
            lengths = []
            with (temporary / "data.bin").open("wb") as data, (temporary / "indices.bin").open("wb") as indices:
                for start in range(0, n, CELLS_AT_ONCE):
                    part = cells.counts[rows[start : start + CELLS_AT_ONCE]]
                    lengths.append(np.diff(part.indptr))
                    part.data.astype(np.float32, copy=False).tofile(data)
                    part.indices.astype(np.int32, copy=False).tofile(indices)
            np.save(temporary / "indptr.npy", np.concatenate([[0], *lengths]).cumsum())
            np.save(temporary / "library_size.npy", cells.library_size[rows])
        np.save(temporary / "codes.npy", cells.codes[rows])
        (temporary / COMPLETE).write_text(json.dumps({"cells": n, "genes": cells.counts.shape[1]}))
    size = sum(file.stat().st_size for file in folder.iterdir())
    log.info("%d encoded cells are cached in %s (%.1f MB) until training is complete", n, folder, size / 1e6)


def open_written(codec: Codec, folder: Path, device: torch.device) -> EncodedCells:
    """Open the cache of `write`; cells are read from it batch by batch."""
    about = json.loads((folder / COMPLETE).read_text())
    codes = np.load(folder / "codes.npy")
    if codec.compact:
        mean, deviation = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "deviation"))
        return Posteriors(mean, deviation, codes, device)
    data, indices = (_mapped(folder / "data.bin", np.float32), _mapped(folder / "indices.bin", np.int32))
    counts = _MappedCSR(data, indices, np.load(folder / "indptr.npy"), about["genes"])
    return EncodedOnDemand(codec, TrainingCells(counts, np.load(folder / "library_size.npy"), codes), None, device)


def is_cached(folder: Path) -> bool:
    """Return whether the cache of `write` is complete."""
    return (folder / COMPLETE).exists()


def remove(folder: Path) -> None:
    """Delete the cache and temporary files of killed processes. Files that cannot be deleted count as incomplete."""
    (folder / COMPLETE).unlink(missing_ok=True)
    for path in [folder, *folder.parent.glob(f".*-{folder.name}")]:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class _MappedCSR:
    """A memory-mapped CSR matrix (n, genes) of counts that reads only the rows asked for; scipy reads all indices."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    genes: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.indptr) - 1, self.genes

    def __getitem__(self, at: np.ndarray) -> sparse.csr_matrix:
        first = self.indptr[at]
        ends = np.concatenate([[0], (self.indptr[at + 1] - first).cumsum()])
        places = np.arange(ends[-1]) + np.repeat(first - ends[:-1], np.diff(ends))
        arrays = (_rows(self.data, places), _rows(self.indices, places), ends)
        return sparse.csr_matrix(arrays, shape=(len(at), self.genes))


def _rows(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return some rows and release the pages of a memory map, which would otherwise fill memory with the whole file."""
    rows = values[places]
    if isinstance(values.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        values.base.madvise(mmap.MADV_DONTNEED)
    return rows


def _mapped(path: Path, dtype: type[np.generic]) -> np.ndarray:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


class _Array:
    """A float32 .npy file that is appended to row by row. A full disk raises an error; a memory map would crash."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        np.lib.format.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").data)

    def __enter__(self) -> _Array:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

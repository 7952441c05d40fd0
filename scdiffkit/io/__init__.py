"""Cells in and out of files: h5ad, loom, 10x matrix folder, 10x HDF5. A write is complete or not at all."""

from scdiffkit.io import columns
from scdiffkit.io.atomic import atomic_path, atomic_write_bytes, atomic_write_text, interruption
from scdiffkit.io.backed import Backed, OnDisk, Rows, Selected, Stacked, ahead, blocks, give_back, on_disk, open_backed
from scdiffkit.io.cells import CellsLike, CellWriter, open_cells, open_rows, read, write
from scdiffkit.io.formats import check_output
from scdiffkit.io.summary import describe

__all__ = [
    "Backed",
    "CellWriter",
    "CellsLike",
    "OnDisk",
    "Rows",
    "Selected",
    "Stacked",
    "ahead",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_text",
    "blocks",
    "check_output",
    "columns",
    "describe",
    "give_back",
    "interruption",
    "on_disk",
    "open_backed",
    "open_cells",
    "open_rows",
    "read",
    "write",
]

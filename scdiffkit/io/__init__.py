"""Cells in and out of files: h5ad, loom, 10x matrix folder, 10x HDF5. A write is complete or not at all."""

from scdiffkit.io.atomic import atomic_path, atomic_write_bytes, atomic_write_text
from scdiffkit.io.cells import CellWriter, read, write
from scdiffkit.io.formats import check_output
from scdiffkit.io.summary import describe

__all__ = [
    "CellWriter",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_text",
    "check_output",
    "describe",
    "read",
    "write",
]

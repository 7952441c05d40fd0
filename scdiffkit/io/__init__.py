"""Reading and writing of cells: h5ad, zarr (read only), loom, 10x matrix folder and 10x HDF5. Writes are atomic."""

from scdiffkit.io import columns
from scdiffkit.io.atomic import atomic_path, atomic_write_bytes, atomic_write_text
from scdiffkit.io.backed import Backed, open_backed
from scdiffkit.io.formats import check_output
from scdiffkit.io.matrices import OnDisk, Rows, Selected, Stacked, on_disk
from scdiffkit.io.reading import CellsLike, open_cells, open_rows, read
from scdiffkit.io.summary import describe
from scdiffkit.io.writing import CellWriter, write

__all__ = [
    "Backed",
    "CellWriter",
    "CellsLike",
    "OnDisk",
    "Rows",
    "Selected",
    "Stacked",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_text",
    "check_output",
    "columns",
    "describe",
    "on_disk",
    "open_backed",
    "open_cells",
    "open_rows",
    "read",
    "write",
]

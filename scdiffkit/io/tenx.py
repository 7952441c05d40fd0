"""The two formats of 10x Genomics: matrix folder (v2: genes.tsv, v3: features.tsv.gz) and HDF5 (v2, v3)."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError, FileError, warn
from scdiffkit.io import columns
from scdiffkit.io.formats import damaged, open_hdf5
from scdiffkit.io.h5ad import GrowingCSR

if TYPE_CHECKING:
    from anndata import AnnData

GENE_EXPRESSION = "Gene Expression"
MATRIX = "matrix.mtx"
GZIP_LEVEL = 2  # level 6 makes files a fifth smaller, but takes seven times as long


def read_folder(path: Path) -> AnnData:
    """Read a matrix folder. Its files may be gzipped or not, and may share a prefix (as on GEO)."""
    files = find_files(path)
    try:
        barcodes = [line[0] for line in _rows(files["barcodes"])]
        features = _rows(files["features"])
        matrix = _read_matrix(files["matrix"], len(features), len(barcodes), path)
        obs = pd.DataFrame(index=pd.Index(barcodes, dtype=object))
        kept: dict[str, Any] = {}
        if "extra" in files:
            kept = json.loads(_open(files["extra"]).read())
        if "obs" in files:
            obs = _read_obs(files["obs"], barcodes, kept.get("obs", {}))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, json.JSONDecodeError) as e:
        raise FileError(f"{path}: a file in it is damaged or cut short: copy or download it again ({e}).") from e
    width = min((len(row) for row in features), default=1)
    names = pd.Index([row[1 if width > 1 else 0] for row in features], dtype=object)
    var = pd.DataFrame({"gene_ids": [row[0] for row in features]}, index=names)
    if width > 2:
        var["feature_types"] = [row[2] for row in features]
    return _assemble(matrix, obs, var, {"scdiffkit": kept["uns"]} if kept.get("uns") else {}, path)


def read_h5(path: Path) -> AnnData:
    """Read a 10x HDF5 file, v3 (group `matrix`) or v2 (one group, named after the genome)."""
    with open_hdf5(path) as f:
        try:
            group, var = h5_group(f, path)
            n_genes, n_cells = (int(n) for n in group["shape"][()])
            parts = (group["data"][()], group["indices"][()], group["indptr"][()])
            matrix = sparse.csr_matrix(parts, shape=(n_cells, n_genes))
            obs = pd.DataFrame(index=pd.Index(_texts(group["barcodes"]), dtype=object))
        except (OSError, KeyError, ValueError) as e:
            raise FileError(damaged(path, e)) from e
    matrix.sort_indices()
    return _assemble(matrix.astype(np.float32), obs, var, {}, path)


def h5_group(f: h5py.File, path: Path) -> tuple[h5py.Group, pd.DataFrame]:
    """Return the group with the counts, and its genes as a var frame indexed by symbol."""
    if "matrix" in f:
        group = f["matrix"]
        features = group["features"]
        var = pd.DataFrame({"gene_ids": _texts(features["id"])}, index=pd.Index(_texts(features["name"]), dtype=object))
        if "feature_type" in features:
            var["feature_types"] = _texts(features["feature_type"])
        if "genome" in features:
            var["genome"] = _texts(features["genome"])
        return group, var
    genomes = [key for key in f if "genes" in f[key]]
    if len(genomes) > 1:
        raise FileError(
            f"{path} holds {len(genomes)} genomes ({', '.join(genomes)}): split it into one file per genome."
        )
    group = f[genomes[0]]
    names = pd.Index(_texts(group["gene_names"]), dtype=object)
    return group, pd.DataFrame({"gene_ids": _texts(group["genes"])}, index=names)


class TenxFolder:
    """A v3 matrix folder to which batches of cells are appended.

    The matrix is layers["counts"] if there is one, else X. obs and uns["scdiffkit"] are written to two extra files,
    which other tools ignore and `read` restores.
    """

    def __init__(self, path: Path, var: pd.DataFrame, uns: dict[str, Any], layers: tuple[str, ...]) -> None:
        _check_names(var.index, "gene name")
        self._path, self._var, self._uns, self._layers = path, var, uns, layers
        self._shape, self._nnz, self._integers = [len(var), 0], 0, True
        path.mkdir()
        self._body_path = path / "body.tmp"
        self._body = self._body_path.open("wb")
        self._gzip = gzip.GzipFile("", "wb", GZIP_LEVEL, self._body, mtime=0)

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None:
        from scipy.io import mmwrite

        cells = layers.get("counts", X).tocoo()
        if cells.nnz:
            integers = bool(np.array_equal(cells.data, np.rint(cells.data)))
            values = cells.data.astype(np.int64) if integers else cells.data
            shape = (self._shape[0], self._shape[1] + cells.shape[0])
            block = sparse.coo_matrix((values, (cells.col, cells.row + self._shape[1])), shape=shape)
            text = io.BytesIO()
            mmwrite(text, block, field="integer" if integers else "real", symmetry="general")
            text.seek(0)
            while text.readline().startswith(b"%"):  # skip mmwrite's header and size line
                pass
            self._gzip.write(text.read())
            self._integers &= integers
        self._shape[1] += cells.shape[0]
        self._nnz += cells.nnz

    def finish(self, obs: pd.DataFrame) -> list[str]:
        _check_names(obs.index, "cell name")
        self.close()
        field = "integer" if self._integers else "real"
        size = f"{self._shape[0]} {self._shape[1]} {self._nnz}"
        header = _gzipped(f"%%MatrixMarket matrix coordinate {field} general\n{size}\n")
        with (self._path / f"{MATRIX}.gz").open("wb") as file, self._body_path.open("rb") as body:
            file.write(header)  # as a gzip member of its own: it precedes the body, but the size is known only now
            shutil.copyfileobj(body, file, 1 << 20)
        self._body_path.unlink()
        values, spec, lost = columns.encode(obs)
        ids, types, missing = _features(self._var)
        rows = zip(ids, self._var.index, types)
        extra = json.dumps({"uns": columns.plain(self._uns.get("scdiffkit")), "obs": spec})
        table = pd.DataFrame(values, index=pd.Index(obs.index, name="barcode"))
        for name, text in {
            "barcodes.tsv.gz": "".join(f"{name}\n" for name in obs.index),
            "features.tsv.gz": "".join("\t".join(row) + "\n" for row in rows),
            "obs.tsv.gz": table.to_csv(sep="\t", lineterminator="\n"),
        }.items():
            (self._path / name).write_bytes(_gzipped(text))
        (self._path / "scdiffkit.json").write_text(extra, encoding="utf-8")
        return _lost(self._uns, self._layers, keep_uns=True) + missing + lost

    def close(self) -> None:
        self._gzip.close()
        self._body.close()


class TenxH5:
    """A v3 10x HDF5 file to which batches of cells are appended: integer counts, barcodes and genes only."""

    def __init__(self, path: Path, var: pd.DataFrame, uns: dict[str, Any], layers: tuple[str, ...]) -> None:
        self._var, self._uns, self._layers = var, uns, layers
        self._file = h5py.File(path, "w")
        self._group = self._file.create_group("matrix")
        self._counts = GrowingCSR(self._group, len(var), np.int32)

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None:
        counts = layers.get("counts", X)
        if not np.array_equal(counts.data, np.rint(counts.data)):
            raise DataError(
                "A 10x HDF5 file holds integer counts, and X has fractions: put raw counts in "
                'layers["counts"], or write .h5ad or .loom.'
            )
        self._counts.append(counts)

    def finish(self, obs: pd.DataFrame) -> list[str]:
        self._counts.finish()
        ids, types, missing = _features(self._var)
        genome = self._var["genome"].astype(str) if "genome" in self._var else [""] * len(self._var)
        features = self._group.create_group("features")
        for group, name, texts in (
            (self._group, "barcodes", obs.index),
            (features, "id", ids),
            (features, "name", self._var.index),
            (features, "feature_type", types),
            (features, "genome", genome),
            (features, "_all_tag_keys", ["genome"]),
        ):
            encoded = np.array([text.encode("utf-8") for text in texts], dtype="S")
            group.create_dataset(name, data=encoded.astype("S1") if encoded.dtype.itemsize == 0 else encoded)
        self._group.create_dataset("shape", data=np.array([len(self._var), self._counts.n_rows], dtype=np.int32))
        gone = [f"obs column {key!r}" for key in obs.columns]
        return gone + _lost(self._uns, self._layers, keep_uns=False) + [m for m in missing if "'genome'" not in m]

    def close(self) -> None:
        self._file.close()


def find_files(folder: Path) -> dict[str, Path]:
    """Find the files of a 10x folder, by role. Raises FileError that lists what is missing and what is there."""
    try:
        there = sorted(p.name for p in folder.iterdir())
    except OSError as e:
        raise FileError(f"{folder} cannot be opened: {e.strerror or e}.") from e
    wanted = {
        "matrix": (MATRIX,),
        "features": ("features.tsv", "genes.tsv"),
        "barcodes": ("barcodes.tsv",),
        "obs": ("obs.tsv",),
        "extra": ("scdiffkit.json",),
    }
    found: dict[str, Path] = {}
    for role, names in wanted.items():
        exact = [n + gz for n in names for gz in (".gz", "") if n + gz in there]
        prefixed = [t for t in there if t.endswith(tuple(n + gz for n in names for gz in (".gz", "")))]
        if exact or len(prefixed) == 1:
            found[role] = folder / (exact or prefixed)[0]
    missing = [" or ".join(wanted[role]) for role in ("matrix", "features", "barcodes") if role not in found]
    if missing:
        inside = [p.parent for p in sorted(folder.glob("*/matrix.mtx*")) + sorted(folder.glob("*/*/matrix.mtx*"))]
        listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") or "nothing"
        hint = f" There is one inside: {inside[0]}." if inside else f" It holds: {listed}."
        raise FileError(f"{folder} is not a 10x matrix folder: no {', no '.join(missing)} (.gz or not).{hint}")
    return found


def matrix_shape(file: Path) -> tuple[int, int]:
    """Read the numbers of genes and cells from the header of a matrix file."""
    with _open(file) as f:
        for line in f:
            if not line.startswith("%") and line.strip():
                genes, cells = line.split()[:2]
                return int(genes), int(cells)
    raise FileError(f"{file} has no line with the size of the matrix: copy or download it again.")


def _open(file: Path) -> io.TextIOWrapper:
    with file.open("rb") as f:
        gzipped = f.read(2) == b"\x1f\x8b"  # check the content: unpacked files sometimes keep the suffix .gz
    stream: Any = gzip.GzipFile(file) if gzipped else file.open("rb")
    return io.TextIOWrapper(stream, encoding="utf-8", newline="\n")


def _rows(file: Path) -> list[list[str]]:
    with _open(file) as f:
        return [line.rstrip("\r\n").split("\t") for line in f if line.strip("\r\n")]


def _read_matrix(file: Path, n_genes: int, n_cells: int, folder: Path) -> sparse.csr_matrix:
    from scipy.io import mmread

    try:
        with _open(file) as text:
            matrix = mmread(text.buffer)
    except (ValueError, OverflowError) as e:
        raise FileError(f"{file} is not a whole Matrix Market file: copy or download it again ({e}).") from e
    if matrix.shape != (n_genes, n_cells):
        raise FileError(
            f"{folder}: the matrix is {matrix.shape[0]} genes x {matrix.shape[1]} cells, but there are "
            f"{n_genes} lines "
            f"of features and {n_cells} of barcodes. These files do not belong together."
        )
    cells = sparse.csr_matrix(matrix.T)
    cells.sort_indices()
    return cells.astype(np.float32)


def _read_obs(file: Path, barcodes: list[str], spec: columns.Spec) -> pd.DataFrame:
    """Read obs in the order of the barcodes; dtypes are those of `spec`, else numeric if all values are numbers."""
    with _open(file) as text:
        table = pd.read_csv(text, sep="\t", index_col=False, dtype=str, keep_default_na=False)
    table = table.set_index(table.columns[0])
    if list(table.index) != barcodes:
        if sorted(table.index) != sorted(barcodes) or not table.index.is_unique:
            raise FileError(f"The rows of {file} are not the barcodes of this folder: correct or remove that file.")
        table = table.loc[barcodes]
    if spec:
        values = {key: columns.decode(table.iloc[:, i].to_numpy(), spec[key]) for i, key in enumerate(spec)}
    else:
        values = {str(key): _numbers_if_all_are(table[key]) for key in table}
    return pd.DataFrame(values, index=pd.Index(barcodes, dtype=object))


def _numbers_if_all_are(column: pd.Series) -> np.ndarray:
    try:
        return pd.to_numeric(column).to_numpy()
    except ValueError:
        return column.to_numpy()


def _assemble(
    matrix: sparse.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any], path: Path
) -> AnnData:
    """Build the AnnData: keep only features that are genes, and make gene names unique."""
    from anndata import AnnData
    from anndata.utils import make_index_unique

    if "feature_types" in var:
        genes = (var["feature_types"] == GENE_EXPRESSION).to_numpy()
        if not genes.all():
            others = ", ".join(sorted(set(var["feature_types"][~genes])))
            warn(f"{path}: {(~genes).sum()} features that are not genes ({others}) were left out.")
            matrix, var = matrix[:, genes], var[genes]
    repeated = int(var.index.duplicated().sum())
    if repeated:
        var = var.set_axis(make_index_unique(var.index))
        warn(
            f"{path}: {repeated} of {len(var)} gene symbols repeat an earlier one; -1, -2, ... was "
            'appended to make them unique (their ids are in var["gene_ids"]).'
        )
    return AnnData(X=matrix, obs=obs, var=var, uns=uns)


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in dataset[()]]


def _gzipped(text: str) -> bytes:
    return gzip.compress(text.encode("utf-8"), GZIP_LEVEL, mtime=0)


def _check_names(names: pd.Index, kind: str) -> None:
    for name in names:
        if "\t" in name or "\n" in name or "\r" in name:
            raise DataError(
                f"The {kind} {name!r} contains a tab or a line break, which a 10x folder cannot store: rename it."
            )


def _features(var: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Return gene ids, feature types, and the var columns that 10x formats cannot hold."""
    key = next((k for k in ("gene_ids", "gene_id") if k in var), None)
    ids = [str(v) for v in (var[key] if key else var.index)]
    types = [str(v) for v in var["feature_types"]] if "feature_types" in var else [GENE_EXPRESSION] * len(var)
    return ids, types, [f"var column {c!r}" for c in var.columns if c not in (key, "feature_types")]


def _lost(uns: dict[str, Any], layers: tuple[str, ...], *, keep_uns: bool) -> list[str]:
    lost = columns.lost_of_uns(uns, kept=("scdiffkit",) if keep_uns else ())
    if "counts" in layers:
        lost.append('X (layers["counts"] is the matrix)')
    return lost + [f"layers[{name!r}]" for name in layers if name != "counts"]

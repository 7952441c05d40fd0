"""Files made by hand or by other tools, and files that cannot be read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData

from scdiffkit import io
from scdiffkit.errors import FileError, ScdiffWarning

MTX = """%%MatrixMarket matrix coordinate integer general
% made by hand
3 2 4
1 1 5
3 1 1
2 2 7
3 2 2
"""
EXPECTED = np.array([[5, 0, 1], [0, 7, 2]], dtype=np.float32)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("mtx", ["matrix.mtx", "matrix.mtx.gz"])
@pytest.mark.parametrize("barcodes", ["barcodes.tsv", "barcodes.tsv.gz"])
@pytest.mark.parametrize("genes", ["genes.tsv", "genes.tsv.gz", "features.tsv", "features.tsv.gz"])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
def test_10x_folders_v2_and_v3(mtx: str, barcodes: str, genes: str, prefix: str, tmp_path: Path) -> None:
    third = "\tGene Expression" if genes.startswith("features") else ""
    put(tmp_path / (prefix + mtx), MTX)
    put(tmp_path / (prefix + barcodes), "AAAC-1\nAAAG-1\n")
    put(tmp_path / (prefix + genes), "".join(f"E{i}\tS{i}{third}\n" for i in range(3)))
    adata = io.read(tmp_path)
    assert adata.X.format == "csr"
    assert np.array_equal(adata.X.toarray(), EXPECTED)
    assert list(adata.obs_names) == ["AAAC-1", "AAAG-1"]
    assert list(adata.var_names) == ["S0", "S1", "S2"]
    assert list(adata.var["gene_ids"]) == ["E0", "E1", "E2"]


def write_h5(path: Path, version: int, types: tuple[str, ...] = ("Gene Expression",) * 3) -> Path:
    with h5py.File(path, "w") as f:
        group = f.create_group("matrix" if version == 3 else "hg19")
        group["barcodes"] = np.array([b"AAAC-1", b"AAAG-1"])
        group["data"] = np.array([5, 1, 7, 2], dtype=np.int32)
        group["indices"] = np.array([0, 2, 1, 2])
        group["indptr"] = np.array([0, 2, 4])
        group["shape"] = np.array([3, 2], dtype=np.int32)
        ids, names = np.array([b"E0", b"E1", b"E2"]), np.array([b"S0", b"S1", b"S2"])
        if version == 3:
            group["features/id"], group["features/name"] = ids, names
            group["features/feature_type"] = np.array(types, dtype="S")
            group["features/genome"] = np.array([b"GRCh38"] * 3)
        else:
            group["genes"], group["gene_names"] = ids, names
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_10x_hdf5_v2_and_v3(version: int, tmp_path: Path) -> None:
    adata = io.read(write_h5(tmp_path / "a.h5", version))
    assert np.array_equal(adata.X.toarray(), EXPECTED)
    assert list(adata.var_names) == ["S0", "S1", "S2"]
    assert list(adata.var["gene_ids"]) == ["E0", "E1", "E2"]


def test_features_that_are_not_genes_are_left_out(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", 3, ("Gene Expression", "Antibody Capture", "Gene Expression"))
    with pytest.warns(ScdiffWarning, match="1 features .*Antibody Capture"):
        adata = io.read(path)
    assert np.array_equal(adata.X.toarray(), EXPECTED[:, [0, 2]])


def test_repeated_gene_symbols_of_10x_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path / "matrix.mtx", MTX)
    put(tmp_path / "barcodes.tsv", "a\nb\n")
    put(tmp_path / "genes.tsv", "E0\tS\nE1\tS\nE2\tR\n")
    with pytest.warns(ScdiffWarning, match="1 of 3 gene symbols"):
        adata = io.read(tmp_path)
    assert list(adata.var_names) == ["S", "S-1", "R"]
    assert list(adata.var["gene_ids"]) == ["E0", "E1", "E2"]


def test_labels_beside_a_10x_folder_of_others_are_matched_by_barcode(tmp_path: Path) -> None:
    put(tmp_path / "matrix.mtx", MTX)
    put(tmp_path / "barcodes.tsv", "a\nb\n")
    put(tmp_path / "genes.tsv", "E0\tS0\nE1\tS1\nE2\tS2\n")
    put(tmp_path / "obs.tsv", "barcode\tcell_type\tage\nb\tT\t4\na\tB\t3\n")
    obs = io.read(tmp_path).obs
    assert list(obs.index) == ["a", "b"]
    assert list(obs["cell_type"]) == ["B", "T"]
    assert list(obs["age"]) == [3, 4]
    put(tmp_path / "obs.tsv", "barcode\tcell_type\nx\tT\na\tB\n")
    with pytest.raises(FileError, match="are not the barcodes"):
        io.read(tmp_path)


def test_the_content_decides_the_format(tiny: AnnData, tmp_path: Path) -> None:
    io.write(tiny, tmp_path / "a.loom").rename(tmp_path / "a.h5ad")
    with pytest.warns(ScdiffWarning, match="loom file in spite of its name"):
        adata = io.read(tmp_path / "a.h5ad")
    assert (adata.X != tiny.X).nnz == 0


def test_h5ad_keeps_repeated_names_as_they_are(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.var_names = ["same"] * 60
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        assert list(io.read(io.write(adata, tmp_path / "a.h5ad")).var_names) == ["same"] * 60


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    put(tmp_path / "pbmc3k.h5ad", "x")
    with pytest.raises(FileError, match=r"pbmc3.h5ad does not exist.*did you mean 'pbmc3k.h5ad'"):
        io.read(tmp_path / "pbmc3.h5ad")
    with pytest.raises(FileError, match="neither does the folder"):
        io.read(tmp_path / "nowhere" / "a.h5ad")


@pytest.mark.parametrize("use", [io.read, io.describe])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cell,gene1,gene2\na,1,2\n", "a text file"),
        ("gène\tß\n".encode(), "a text file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (gzip.compress(b"x", mtime=0), "gzip file: unpack"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"", "empty: copy"),
        (bytes(range(128, 256)), "copy or download it again"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(
    use: Callable[[Path], object], content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.h5ad"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"a.h5ad is .*{said}"):
        use(path)


@pytest.mark.parametrize("use", [io.read, io.describe])
@pytest.mark.parametrize("name", ["a.h5ad", "a.loom", "a.h5"])
@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.filterwarnings("ignore::scdiffkit.errors.ScdiffWarning")
def test_a_truncated_file(
    use: Callable[[Path], object], name: str, share: float, tiny: AnnData, tmp_path: Path
) -> None:
    path = io.write(tiny, tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileError, match=r"cut short: copy or download it again"):
        use(path)


@pytest.mark.parametrize("use", [io.read, io.describe])
def test_a_damaged_h5ad(use: Callable[[Path], object], tiny: AnnData, tmp_path: Path) -> None:
    path = io.write(tiny, tmp_path / "a.h5ad")
    with h5py.File(path) as f:
        start = f["X/data"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(FileError, match="damaged or cut short"):
        use(path)


def test_another_kind_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["weights"] = [1, 2]
    with pytest.raises(FileError, match="it holds: weights"):
        io.read(tmp_path / "a.h5")


def test_a_folder_that_is_no_10x_folder(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", "x")
    with pytest.raises(FileError, match=r"no matrix.mtx, no features.tsv or genes.tsv, no barcodes.tsv.*notes.txt"):
        io.read(tmp_path)
    put(tmp_path / "filtered" / "matrix.mtx.gz", MTX)
    with pytest.raises(FileError, match=r"There is one inside: .*filtered"):
        io.read(tmp_path)


@pytest.mark.parametrize(
    ("matrix", "genes", "said"),
    [
        (MTX, "E0\tS0\n", "do not belong together"),
        (MTX[:90], "E0\tS0\nE1\tS1\nE2\tS2\n", "not a whole Matrix Market file"),
        ("nothing", "E0\tS0\nE1\tS1\nE2\tS2\n", "not a whole Matrix Market file"),
    ],
)
def test_a_10x_folder_with_wrong_files(matrix: str, genes: str, said: str, tmp_path: Path) -> None:
    put(tmp_path / "matrix.mtx", matrix)
    put(tmp_path / "barcodes.tsv", "a\nb\n")
    put(tmp_path / "genes.tsv", genes)
    with pytest.raises(FileError, match=said):
        io.read(tmp_path)


def test_a_truncated_gzip_in_a_10x_folder(tiny: AnnData, tmp_path: Path) -> None:
    folder = io.write(tiny, tmp_path / "folder")
    matrix = folder / "matrix.mtx.gz"
    matrix.write_bytes(matrix.read_bytes()[:-200])
    with pytest.raises(FileError, match="copy or download it again"):
        io.read(folder)


def test_permission_denied(tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = io.write(tiny, tmp_path / "a.h5ad")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # tests may run as root, whom file modes do not stop
    with pytest.raises(FileError, match=r"cannot be opened: Permission denied"):
        io.read(path)


def test_an_h5ad_by_anndata(tiny: AnnData, tmp_path: Path) -> None:
    tiny.write_h5ad(tmp_path / "a.h5ad")
    assert (io.read(str(tmp_path / "a.h5ad")).X != tiny.X).nnz == 0

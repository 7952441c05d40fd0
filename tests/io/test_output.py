"""Where cells may be written, and files that are there in full or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from anndata import AnnData

from scdiffkit import io
from scdiffkit.errors import ConfigError, FileError


@pytest.mark.parametrize("name", ["a.h5ad", "a.loom", "a.h5", "folder", "deep/er/a.h5ad"])
def test_a_new_output_is_fine_and_nothing_is_made(name: str, tmp_path: Path) -> None:
    io.check_output(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_needs_force(tiny: AnnData, tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("old")
    with pytest.raises(FileError, match=r"a.h5ad exists already.*`force=True`"):
        io.write(tiny, tmp_path / "a.h5ad")
    assert (tmp_path / "a.h5ad").read_text() == "old"
    io.write(tiny, tmp_path / "a.h5ad", force=True)
    assert io.read(tmp_path / "a.h5ad").shape == tiny.shape


def test_only_a_10x_folder_is_ever_replaced(tiny: AnnData, tmp_path: Path) -> None:
    folder = io.write(tiny, tmp_path / "folder")
    with pytest.raises(FileError, match="`force=True`"):
        io.check_output(folder)
    io.check_output(folder, force=True)
    (folder / "thesis.docx").write_text("years of work")
    with pytest.raises(FileError, match=r"also holds 'thesis.docx'"):
        io.write(tiny, folder, force=True)
    assert (folder / "thesis.docx").read_text() == "years of work"
    (tmp_path / "b.h5ad").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        io.check_output(tmp_path / "b.h5ad", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="is a file"):
        io.check_output(tmp_path / "file", force=True)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "file"])
def test_an_unwritable_folder(folder: str, tiny: AnnData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    path = tmp_path / folder / "a.h5ad"
    for attempt in (lambda: io.check_output(path), lambda: io.write(tiny, path)):
        with pytest.raises(FileError, match=r"a.h5ad could not be written"):
            attempt()


@pytest.mark.parametrize("name", ["a.csv", "a.rds", "a.v2"])
def test_an_unknown_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.h5ad, .*\.loom, .*\.h5 .*folder"):
        io.check_output(tmp_path / name)


def test_format_overrules_the_name(tiny: AnnData, tmp_path: Path) -> None:
    path = io.write(tiny, tmp_path / "sample.v2", format="10x")
    assert (path / "matrix.mtx.gz").exists()
    with pytest.raises(ConfigError, match="did you mean 'h5ad'"):
        io.write(tiny, tmp_path / "a", format="h5da")


def begin_and_stop(target: Path, begin: Callable[[Path], object]) -> None:
    with io.atomic_path(target) as temporary:
        begin(temporary)
        assert temporary.exists()
        raise KeyboardInterrupt


def test_atomic_path_for_a_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with io.atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(KeyboardInterrupt):
        begin_and_stop(target, lambda temporary: temporary.write_text("two"))
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_atomic_path_for_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for text in ("one", "two"):
        with io.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / "a.txt").write_text(text)
    assert (target / "a.txt").read_text() == "two"
    with pytest.raises(KeyboardInterrupt):
        begin_and_stop(target, lambda temporary: (temporary.mkdir(), (temporary / "b.txt").write_text("x")))
    assert (target / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_atomic_path_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    io.atomic_write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_text_and_bytes(tmp_path: Path) -> None:
    io.atomic_write_text(tmp_path / "a.txt", "grün\n")
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()
    io.atomic_write_bytes(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    with pytest.raises(FileError, match="could not be written"):
        io.atomic_write_text(tmp_path / "a.txt" / "below.txt", "x")

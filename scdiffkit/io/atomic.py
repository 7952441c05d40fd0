"""Atomic writes: a file is written beside its target, synced, and then renamed, so it is complete or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scdiffkit.errors import FileError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder, which replaces `path` on a clean exit.

    After any exception, including Ctrl-C, the temporary file or folder is removed and `path` remains unchanged.
    Missing parent folders are created. Raises FileError if the folder cannot be created or written.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # replace the target of the link, not the link
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        with writing(path):
            _sync(temporary)
            _replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises FileError if it cannot be written."""
    with writing(path), atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically. Raises FileError if it cannot be written."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Convert an OSError while writing `path` to a FileError."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or str(e)
        raise FileError(
            f"{path} could not be written: {reason}. Check the free space and your permissions there, or choose "
            "another place."
        ) from e


def _replace(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
    else:  # a non-empty folder cannot be replaced in one step: move it aside first
        aside = path.with_name(f".old-{uuid.uuid4().hex[:8]}-{path.name}")
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(aside, path)
            raise
        shutil.rmtree(aside)
    with suppress(OSError):  # some network file systems cannot sync a folder; the rename itself has happened
        _fsync(path.parent)


def _sync(path: Path) -> None:
    for member in [*path.iterdir(), path] if path.is_dir() else [path]:
        _fsync(member)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

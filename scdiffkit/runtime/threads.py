"""The number of threads that libraries use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController


@contextmanager
def openmp_threads_kept() -> Iterator[None]:
    """Restore OpenMP's number of threads after the block, because the rounding of torch's sums depends on it.

    numba, which scanpy uses, sets it to the number of cores and ignores OMP_NUM_THREADS.
    """
    before = {lib.filepath: lib.num_threads for lib in _openmp()}
    try:
        yield
    finally:
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        for lib in _openmp():
            if lib.filepath in before:
                lib.set_num_threads(before[lib.filepath])
            elif asked.isdigit():  # the library was loaded within the block
                lib.set_num_threads(int(asked))


def _openmp() -> list[Any]:
    return ThreadpoolController().select(user_api="openmp").lib_controllers

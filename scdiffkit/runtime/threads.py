"""How many threads libraries compute with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController


@contextmanager
def openmp_threads_kept() -> Iterator[None]:
    """After the block, OpenMP has as many threads as before, which decide how torch's sums are rounded.

    numba, with which scanpy computes, sets them to the number of cores, whatever OMP_NUM_THREADS says.
    """
    before = {lib.filepath: lib.num_threads for lib in _openmp()}
    try:
        yield
    finally:
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        for lib in _openmp():
            if lib.filepath in before:
                lib.set_num_threads(before[lib.filepath])
            elif asked.isdigit():  # loaded within the block
                lib.set_num_threads(int(asked))


def _openmp() -> list[Any]:
    return ThreadpoolController().select(user_api="openmp").lib_controllers

"""Learn from your own single-cell RNA-seq data and generate new, labelled, realistic cells.

>>> import scdiffkit as sk
>>> run = sk.train("pbmc3k.h5ad", arch="whitebox", label="cell_type")
>>> cells = sk.sample(run, 1000, where={"cell_type": "B"})
>>> sk.evaluate("pbmc3k.h5ad", cells, label="cell_type").to_frame()
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdiffkit.compare import compare
    from scdiffkit.evaluate import evaluate
    from scdiffkit.generate import sample
    from scdiffkit.holdout import split
    from scdiffkit.io import read, write
    from scdiffkit.preprocess import preprocess
    from scdiffkit.run import Run
    from scdiffkit.train import train

# Threads that wait for one another spin for some microseconds, and then sleep. Sleeping at once, a training step takes
# nearly twice as long on an idle machine; spinning on, ten times and more on one with other work
# (benchmarks/threads.py). Read once, when torch loads its OpenMP library.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "compare", "evaluate", "preprocess", "read", "sample", "split", "train", "write"]

_PUBLIC = {
    "read": "scdiffkit.io",
    "write": "scdiffkit.io",
    "preprocess": "scdiffkit.preprocess",
    "split": "scdiffkit.holdout",
    "train": "scdiffkit.train",
    "Run": "scdiffkit.run",
    "sample": "scdiffkit.generate",
    "evaluate": "scdiffkit.evaluate",
    "compare": "scdiffkit.compare",
}


class _Package(ModuleType):
    """Loads the public functions on first use, so that importing the package imports neither torch nor scanpy.

    Importing a submodule binds it as an attribute of its package; where function and module share a name
    (`train`, `preprocess`, `evaluate`, `compare`), the function is what a user means.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_PUBLIC[name])
        value = getattr(module, name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package

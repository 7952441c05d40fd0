"""Learn from your own single-cell RNA-seq data and generate new, labelled, realistic cells.

>>> import scdiffkit as sk
>>> run = sk.train("pbmc3k.h5ad", arch="whitebox", label="cell_type")
>>> cells = sk.sample(run, 1000, where={"cell_type": "B"})
>>> sk.evaluate("pbmc3k.h5ad", cells, label="cell_type").to_frame()
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from scdiffkit import _deprecated

if TYPE_CHECKING:
    from scdiffkit.data.split import split
    from scdiffkit.evaluation.comparison import compare
    from scdiffkit.evaluation.pipeline import evaluate
    from scdiffkit.io import read, write
    from scdiffkit.overview import info, runs
    from scdiffkit.preprocessing.pipeline import preprocess
    from scdiffkit.run import Run
    from scdiffkit.sampling.pipeline import sample
    from scdiffkit.training.pipeline import train

# Let OpenMP threads that wait for one another spin for some microseconds and then sleep. Without spinning, a training
# step takes nearly twice as long on an idle machine. With endless spinning, it takes ten times as long or more on a
# machine with other work (benchmarks/threads.py). torch's OpenMP library reads these variables once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_deprecated.install()

__version__ = "0.1.0"
__all__ = [
    "Run",
    "__version__",
    "compare",
    "evaluate",
    "info",
    "preprocess",
    "read",
    "runs",
    "sample",
    "split",
    "train",
    "write",
]

# These are imported on first use, so that importing the package imports neither torch nor scanpy.
_PUBLIC = {
    "read": "scdiffkit.io",
    "write": "scdiffkit.io",
    "preprocess": "scdiffkit.preprocessing.pipeline",
    "split": "scdiffkit.data.split",
    "train": "scdiffkit.training.pipeline",
    "Run": "scdiffkit.run",
    "sample": "scdiffkit.sampling.pipeline",
    "evaluate": "scdiffkit.evaluation.pipeline",
    "compare": "scdiffkit.evaluation.comparison",
    "info": "scdiffkit.overview",
    "runs": "scdiffkit.overview",
}


def __getattr__(name: str) -> Any:
    if name in _deprecated.MOVED and name not in _PUBLIC:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__

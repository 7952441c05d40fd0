"""The Python half of the R package: bytes in, bytes out, so that nothing is left to reticulate's conversion.

Vectors cross as their bytes (little-endian), strings each closed by a zero byte, what is missing as a mask of bytes.
Results hold int, float, bool, str, bytearray, None, and lists and dicts of these.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

Payload = dict[str, Any]
ORIGIN = "r-input.json"  # in a run: what kind of R object its cells came from

# vectors


def strings(data: bytes) -> list[str]:
    """From writeBin of a character vector."""
    return bytes(data).decode("utf-8").split("\0")[:-1]


def as_bytes(values: Any) -> bytearray:
    """For readBin of a character vector."""
    return bytearray("".join(f"{value}\0" for value in values).encode("utf-8"))


def series(column: Payload, index: pd.Index) -> pd.Series:
    """A column of a data frame, its NA kept."""
    kind, data = column["kind"], column["values"]
    missing = np.frombuffer(column["missing"], dtype=bool) if column.get("missing") is not None else None
    if kind == "factor":
        codes = np.frombuffer(data, dtype="<i4").astype(np.int64) - 1
        codes[codes < 0] = -1
        values: Any = pd.Categorical.from_codes(
            codes if missing is None else np.where(missing, -1, codes),
            categories=strings(column["levels"]),
            ordered=bool(column["ordered"]),
        )
    elif kind == "string":
        values = np.array(strings(data), dtype=object)
        if missing is not None:
            values[missing] = None
    else:
        values = np.frombuffer(data, dtype={"integer": "<i4", "logical": "<i4", "double": "<f8"}[kind])
        if kind == "logical":
            values = values != 0
        if missing is not None:
            values = pd.array(np.where(missing, 0, values).astype(values.dtype), dtype=NULLABLE[kind])
            values[missing] = pd.NA
    return pd.Series(values, index=index, name=column["name"])


NULLABLE = {"integer": "Int32", "logical": "boolean"}


def column(values: pd.Series, name: str) -> Payload:
    """As `series` takes it."""
    missing = values.isna().to_numpy()
    mask = bytearray(missing.astype(np.uint8).tobytes()) if missing.any() else None
    about: Payload = {"name": str(name), "missing": mask}
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes = values.cat.codes.to_numpy().astype("<i4") + 1
        levels = as_bytes(values.cat.categories.astype(str))
        return about | {
            "kind": "factor",
            "values": packed(codes, "<i4"),
            "levels": levels,
            "ordered": values.cat.ordered,
        }
    if pd.api.types.is_bool_dtype(values.dtype):
        return about | {"kind": "logical", "values": packed(values.fillna(False).astype(bool), "<i4")}
    if pd.api.types.is_integer_dtype(values.dtype):
        whole = values.fillna(0).to_numpy(dtype=np.int64)
        if len(whole) == 0 or abs(whole).max() < 2**31:
            return about | {"kind": "integer", "values": packed(whole, "<i4")}
        return about | {"kind": "double", "values": packed(whole, "<f8")}
    if pd.api.types.is_float_dtype(values.dtype):
        # NaN are values of their own here, which R tells from NA by their bits
        return about | {"kind": "double", "missing": None, "values": packed(values.to_numpy(dtype=float), "<f8")}
    return about | {"kind": "string", "values": as_bytes("" if lost else v for v, lost in zip(values, missing))}


def packed(values: Any, dtype: str) -> bytearray:
    return bytearray(np.ascontiguousarray(values, dtype=dtype).view(np.uint8))


def frame(columns: list[Payload], index: pd.Index) -> pd.DataFrame:
    return pd.DataFrame({c["name"]: series(c, index) for c in columns}, index=index)


def columns(frame: pd.DataFrame) -> list[Payload]:
    return [column(frame[name], name) for name in frame.columns]


# cells


def matrix(payload: Payload) -> sparse.csr_matrix:
    """R's dgCMatrix of genes x cells holds the same vectors as a CSR of cells x genes."""
    genes, cells = payload["dim"]
    return sparse.csr_matrix(tuple(payload[name].open() for name in "xip"), shape=(int(cells), int(genes)))


LONGEST = 2**31 - 1  # R's sparse matrices count with 32 bits


def matrix_payload(X: Any) -> Payload:
    from scdiffkit.errors import DataError

    X = sparse.csr_matrix(X)
    if X.nnz > LONGEST:
        raise DataError(
            f"A sparse matrix in R holds at most {LONGEST} values that are not zero (2^31 - 1), but this one has "
            f"{X.nnz}: keep the cells in a file (a path as input, `output` for results), and read only a part of it."
        )
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    vectors = {"x": (X.data, "<f8"), "i": (X.indices, "<i4"), "p": (X.indptr, "<i4")}
    return {"dim": [X.shape[1], X.shape[0]], **{name: waiting(*vector) for name, vector in vectors.items()}}


# Large vectors cross by themselves: those that R sends fill a buffer in blocks, those that it fetches wait here.


class Parcel:
    """A vector that R sends, filled from the start."""

    def __init__(self, length: float, kind: str) -> None:
        dtype = np.dtype({"double": "<f8", "integer": "<i4"}[kind])
        self.values, self.filled = np.frombuffer(bytearray(int(length) * dtype.itemsize), dtype=dtype), 0

    def fill(self, block: bytes) -> None:
        values = np.frombuffer(block, dtype=self.values.dtype)
        self.values[self.filled : self.filled + len(values)] = values
        self.filled += len(values)

    def open(self) -> np.ndarray:
        """The vector, once: R may keep the parcel for long."""
        values, self.values = self.values, self.values[:0].copy()
        return values


WAITING: dict[int, tuple[np.ndarray, str]] = {}


def waiting(values: np.ndarray, dtype: str) -> int:
    """The number by which R fetches a vector."""
    number = max(WAITING, default=0) + 1
    WAITING[number] = (values, dtype)
    return number


def take(number: int) -> bytearray:
    """A vector that waited."""
    return packed(*WAITING.pop(number))


def cells(payload: Payload) -> AnnData:
    """AnnData of the R side's cells: X raw counts, or log values with raw counts in a layer."""
    obs_names = pd.Index(strings(payload["cells"]), dtype=object)
    var_names = pd.Index(strings(payload["genes"]), dtype=object)
    counts, data = (None if payload.get(name) is None else matrix(payload[name]) for name in ("counts", "data"))
    adata = AnnData(
        X=counts if data is None else data,
        obs=frame(payload["obs"], obs_names),
        var=frame(payload["var"], var_names),
    )
    if data is not None and counts is not None:
        adata.layers["counts"] = counts
    return adata


def cells_payload(adata: AnnData) -> Payload:
    """As `cells` takes them: raw counts where there are any, and log values."""
    from scdiffkit.preprocessing.counts import are_counts

    counts, data, var = adata.layers.get("counts"), adata.X, adata.var
    if counts is None and adata.raw is not None and are_counts(adata.raw.X):
        counts, var = adata.raw.X, adata.raw.var
        if not var.index.equals(adata.var_names):  # raw often holds more genes
            data = None
    elif counts is None and data is not None and are_counts(data):
        counts, data = data, None
    return {
        "counts": None if counts is None else matrix_payload(counts),
        "data": None if data is None else matrix_payload(data),
        "obs": columns(adata.obs),
        "var": columns(var),
        "cells": as_bytes(adata.obs_names),
        "genes": as_bytes(var.index),
    }


# what R hears while Python works


class Listener(logging.Handler):
    """Log lines and progress, told to R from its own thread alone; R answers whether it was interrupted."""

    def __init__(self, tell: Callable[[str, bool], bool], every: float) -> None:
        super().__init__(logging.INFO)
        self.tell, self.every, self.last = tell, every, time.monotonic()
        self.waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(r_words(record.getMessage()))
        self.flush_lines()

    def flush_lines(self) -> None:
        if threading.current_thread() is threading.main_thread():
            while self.waiting:
                self.say(self.waiting.pop(0), passing=False)

    def say(self, line: str, *, passing: bool) -> None:
        if self.tell(line, passing):
            raise KeyboardInterrupt

    def progress(self, line: str) -> None:
        self.flush_lines()
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(line, passing=True)
        elif self.tell("", True):  # an interrupt is noticed at every step
            raise KeyboardInterrupt


def r_words(text: str) -> str:
    """`--n-top-genes` is `n_top_genes` in R, `scdiff sample` is scdiff_sample(), and remedies are R's."""
    for python, r in IN_R:
        text = re.sub(python, r, text)
    text = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda found: f"`{found[1].replace('-', '_')}`", text)
    return re.sub(r"\bscdiff (preprocess|train|sample|evaluate|info)\b", r"scdiff_\1()", text)


IN_R = (
    (r"scdiff train DATA --resume --out (\S+)", r'scdiff_train(data, label = ..., resume = TRUE, out = "\1")'),
    (
        r"Put the raw integer counts into adata\.layers\['counts'\], or give the file",
        "Name the assay that holds raw integer counts by --assay, or give the object or file",
    ),
    (r"\(adata = adata\[adata\.obs\['(.+?)'\]\.notna\(\)\]\)", r"(object[, !is.na(object$\1)])"),
    (r"adata\.var_names_make_unique\(\)", "make.unique() on them"),
    (r"\bobs column\b", "column of the cells"),
)


def wrong(e: BaseException) -> Payload:
    """What is told of an exception; of a bug, or a library's, in one line."""
    from scdiffkit.errors import ScdiffError

    if isinstance(e, KeyboardInterrupt):
        return {"error": "interrupted", "kind": "interrupt"}
    if isinstance(e, ScdiffError):
        return {"error": str(e), "kind": type(e).__name__}
    if isinstance(e, MemoryError):
        return {"error": "Out of memory. Try fewer cells, or a smaller `batch_size`.", "kind": "MemoryError"}
    return {"error": f"{type(e).__name__}: {e}", "kind": type(e).__name__}


@contextlib.contextmanager
def own_interrupts() -> Iterator[None]:
    """Ctrl-C is Python's while Python works, as on the command line; then R's handler, as it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    put.argtypes = [ctypes.c_int, ctypes.c_void_p]
    of_r = get(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:  # of Python, that is
            signal.signal(signal.SIGINT, before)
        put(signal.SIGINT, of_r)


def call(verb: str, arguments: Payload, tell: Callable[[str, bool], bool], every: float) -> Payload:
    """VERBS[verb](**arguments): its value, or what went wrong, and the warnings. Nothing is raised."""
    from scdiffkit.errors import ScdiffWarning, wording

    WAITING.clear()
    listener, log = Listener(tell, every), logging.getLogger("scdiffkit")
    log.setLevel(logging.INFO)
    log.addHandler(listener)
    answer: Payload = {"value": None, "error": None, "kind": None, "traceback": None}
    with wording(r_words), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ScdiffWarning)
        try:
            with own_interrupts():
                if verb in ("train", "sample", "evaluate"):
                    load_torch()
                answer["value"] = VERBS[verb](**dict(arguments), listener=listener)  # R's empty list is a list here
        except BaseException as e:
            answer |= wrong(e) | {"traceback": traceback.format_exc()}
        log.removeHandler(listener)
    answer["warnings"] = [str(w.message) for w in caught if issubclass(w.category, ScdiffWarning)]
    return answer


# torch inside R's process


def load_torch() -> None:
    """Torch, made as fast in R's process as it is outside; twenty times, where R has its reference BLAS.

    R's BLAS has the names of torch's, and would take its place: torch looks for its own names first. And R has loaded
    OpenMP before it could be told (OMP_WAIT_POLICY) that threads which wait shall not keep the processor: it tells
    itself so once there are more threads than processors, so there is one more, asleep.
    """
    global torch_is_loaded
    if torch_is_loaded:
        return
    import scdiffkit  # noqa: F401  before torch, as everywhere

    flags = sys.getdlopenflags() if hasattr(os, "RTLD_DEEPBIND") else None
    if flags is not None:
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        import torch
    finally:
        if flags is not None:
            sys.setdlopenflags(flags)
    with contextlib.suppress(OSError, AttributeError):  # another OpenMP than GNU's, which is not R's
        start, getpid = ctypes.CDLL("libgomp.so.1").GOMP_parallel, ctypes.CDLL(None).getpid
        if torch.get_num_threads() > 1:
            n = (os.cpu_count() or 1) + 1

            def hold() -> None:
                start(ctypes.cast(getpid, ctypes.c_void_p), None, n, 0)  # threads start, do next to nothing, and wait
                started.set()
                threading.Event().wait()  # they go with the thread that started them

            started = threading.Event()
            threading.Thread(target=hold, daemon=True, name="scdiffkit-openmp").start()
            started.wait(10)
    torch_is_loaded = True


torch_is_loaded = False


# verbs


def _input(data: Any) -> Any:
    """Cells as R sends them, or a path."""
    return cells(data) if isinstance(data, dict) else data


def _given(values: Payload) -> Payload:
    return {key: value for key, value in values.items() if value is not None}


def echo(data: Payload, listener: Listener) -> Payload:
    """The same cells back; what tests the border."""
    return cells_payload(cells(data))


def preprocess(
    data: Any, label: list[str] | None, options: Payload, output: str | None, force: bool, listener: Listener
) -> Any:
    import scdiffkit
    from scdiffkit.config import PreprocessConfig, make
    from scdiffkit.io import check_output
    from scdiffkit.preprocessing.columns import check_label

    if options.get("genes"):
        options = options | {"genes": tuple(options["genes"]), "hvg_flavor": options.get("hvg_flavor") or "list"}
    if output is not None:
        check_output(output, force=force)
    adata = _input(data)
    adata = scdiffkit.read(adata) if isinstance(adata, str) else adata
    for name in label or []:
        check_label(adata.obs, name)
    prepared = scdiffkit.preprocess(adata, make(PreprocessConfig, **_given(options)), label=label)
    if output is not None:
        return str(scdiffkit.write(prepared, output, force=force))
    return cells_payload(prepared)


def train(data: Any, origin: str | None, options: Payload, listener: Listener, **given: Any) -> str:
    from scdiffkit.config import load_file, training_overrides
    from scdiffkit.config.units import parse_duration
    from scdiffkit.errors import ScdiffError
    from scdiffkit.run import Run
    from scdiffkit.training.pipeline import train as fit
    from scdiffkit.training.status import TrainStatus

    def show(status: TrainStatus) -> None:
        held_out = "" if status.val_loss is None else f", held out {status.val_loss:.4f}"
        listener.progress(
            f"{status.stage}: {status.step} of {status.max_steps} steps, loss {status.loss:.4f}{held_out}, "
            f"{status.cells_per_s:.0f} cells/s"
        )

    settings = options.pop("set") or {}
    config, max_time = (given.pop(name) for name in ("config", "max_time"))
    began = time.time()
    try:
        run = fit(
            _input(data),
            condition=given.pop("condition") or (),
            max_time=parse_duration(max_time),
            config=load_file(Path(config)) if config else {},
            overrides=training_overrides(**options) | settings,
            on_progress=show,
            **_given(given),
        )
    except BaseException:  # what was interrupted can be sampled from and resumed, too
        with contextlib.suppress(ScdiffError, OSError):
            path = Run.open(given["out"]).path
            if (path / "config.yaml").stat().st_mtime >= began - 1:
                _keep_origin(path, origin)
        raise
    _keep_origin(run.path, origin)
    return str(run.path)


def _keep_origin(run: Path, origin: str | None) -> None:
    """None: a run that was resumed without cells keeps what it has."""
    from scdiffkit.io import atomic_write_text

    if origin is not None:
        atomic_write_text(run / ORIGIN, origin)


def origin(path: str, listener: Listener) -> str | None:
    """What kind of R object the run's cells came from, as JSON."""
    file = Path(path) / ORIGIN
    return file.read_text() if file.exists() else None


def sample(
    run: str | None,
    n: int | None,
    where: Payload | None,
    like: Any,
    options: Payload,
    output: str | None,
    force: bool,
    listener: Listener,
) -> Any:
    from scdiffkit.config import SampleConfig, make, sampler_options
    from scdiffkit.sampling.pipeline import sample as draw

    named = sampler_options(**{name: options.pop(name, None) for name in ("sampler", "steps", "ddim", "ddpm")})
    config = make(SampleConfig, **_given(options), **named)
    made = draw(
        run, n, where=where, like=_input(like), out=output, config=config, force=force,
        on_progress=lambda done, total: listener.progress(f"sampling: {done} of {total} cells"),
    )  # fmt: skip
    return str(made) if isinstance(made, Path) else cells_payload(made)


def evaluate(real: Any, synthetic: Any, train: Any, options: Payload, listener: Listener) -> Payload:
    import scdiffkit

    found = scdiffkit.evaluate(
        _input(real), _input(synthetic), train=_input(train),
        on_progress=lambda name, i, n: listener.progress(f"evaluating: {i} of {n}, {name}"),
        **_given(options),
    )  # fmt: skip
    frames = {"scores": found.to_frame(), "types": found.types_to_frame(), "donors": found.donors_to_frame()}
    verdict = found.verdict
    return {
        **{name: columns(f) for name, f in frames.items()},
        "cells": None if found.cells is None else columns(found.cells),
        "rows": {name: len(f) for name, f in frames.items()},
        "verdict": {
            "word": verdict.word,
            "grade": verdict.grade,
            "text": str(verdict),
            "privacy": verdict.privacy and r_words(verdict.privacy),
            "findings": as_bytes(map(r_words, verdict.findings)),
        },
        "uses": {"use": as_bytes(_with_limits(verdict)), "grade": as_bytes(verdict.uses.values())},
        "html": None if found.html is None else str(found.html),
        "notes": as_bytes(map(r_words, found.notes)),
    }


def _with_limits(verdict: Any) -> list[str]:
    """The uses, each with what restricts it."""
    return [f"{use} ({verdict.limits[use]})" if use in verdict.limits else use for use in verdict.uses]


def info(path: str, listener: Listener) -> str:
    import json

    import scdiffkit

    return json.dumps(scdiffkit.info(path), default=str)


def runs(folder: str, listener: Listener) -> list[Payload]:
    import scdiffkit

    return columns(scdiffkit.runs(folder))


def metrics(path: str, listener: Listener) -> list[Payload]:
    """The run's losses over its steps."""
    from scdiffkit.run import Run

    return columns(pd.DataFrame(Run.open(path).metrics()))


def read(path: str, listener: Listener) -> Payload:
    import scdiffkit

    return cells_payload(scdiffkit.read(path))


def write(data: Payload, path: str, force: bool, listener: Listener) -> str:
    import scdiffkit

    return str(scdiffkit.write(cells(data), path, force=force))


def latest(listener: Listener) -> str:
    from scdiffkit.run import Run

    return str(Run.open(None).path)


def status() -> Payload:
    """Versions of what is there, and the devices."""
    import importlib.metadata as metadata

    found: Payload = {"python": sys.version.split()[0], "executable": sys.executable}
    for name in ("scdiffkit", "torch", "anndata", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    try:
        load_torch()
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        found["gpu"] = gpu or ("Apple MPS" if torch.backends.mps.is_available() else None)
    except Exception as e:  # a torch that cannot be loaded is what the user wants to know of
        found["torch_error"] = f"{type(e).__name__}: {e}"
    return found


VERBS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (echo, preprocess, train, origin, sample, evaluate, info, metrics, runs, read, write, latest)
}

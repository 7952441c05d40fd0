"""Old names of modules, attributes, keywords and options. They still work, with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MOVED: dict[str, tuple[str, ...]] = {  # old module -> modules that now hold its names
    "compare": ("evaluation.comparison", "evaluation.ranking"),
    "compared": ("evaluation.cell_sets", "evaluation.draws", "evaluation.loading", "evaluation.matching"),
    "data": ("data.cells", "data.conditions", "data.split"),
    "denoiser": ("diffusion.denoiser",),
    "device": ("runtime.device",),
    "evaluate": (
        "evaluation.pipeline", "evaluation.result", "evaluation.scoring", "evaluation.output", "evaluation.options",
    ),
    "fit": ("training.loop", "training.status", "training.validation", "training.state", "training.batches"),
    "gene_sets": ("evaluation.gene_sets",),
    "generate": ("sampling.pipeline", "sampling.plan", "sampling.composition", "sampling.worker"),
    "gradients": ("training.step",),
    "holdout": ("data.split",),
    "preprocess": (
        "preprocessing.pipeline", "preprocessing.counts", "preprocessing.columns", "preprocessing.filters",
        "preprocessing.genes", "preprocessing.join", "preprocessing.normalise", "datasets",
    ),
    "report": ("evaluation.report.page", "evaluation.report.pictures", "evaluation.render"),
    "resample": ("evaluation.resample",),
    "schedule": ("diffusion.schedule",),
    "team": ("training.distributed",),
    "train": ("training.pipeline", "training.codec", "training.cells", "training.resume"),
    "vectors": ("training.encoded",),
    "verdict": ("evaluation.verdict", "evaluation.facts"),
    "workers": ("sampling.pool",),
}  # fmt: skip
RENAMED = {"Cells": "TrainingCells", "nearest": "did_you_mean"}


class _Moved(ModuleType):
    """An old module, which looks up its names in their new modules."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            return look_up(self.__name__.removeprefix("scdiffkit."), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    # scdiffkit.train and others must stay callable after an old module of the same name was imported.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        name = self.__name__.removeprefix("scdiffkit.")
        return _find(name, name)[1]

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        try:
            return self.__wrapped__.__doc__
        except AttributeError:
            return None


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != "scdiffkit" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def look_up(old: str, name: str) -> Any:
    """Look up a name of an old module and warn (DeprecationWarning) with its new place. Raises AttributeError."""
    where, value = _find(old, name)
    warnings.warn(f"scdiffkit.{old}.{name} is now {where}.", DeprecationWarning, stacklevel=3)
    return value


def install() -> None:
    """Make old modules importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def _find(old: str, name: str) -> tuple[str, Any]:
    wanted = RENAMED.get(name, name)
    for place in MOVED[old]:
        module = importlib.import_module(f"scdiffkit.{place}")
        if hasattr(module, wanted):
            value = getattr(module, wanted)
            defined_in = getattr(value, "__module__", module.__name__)  # the module may have imported it from another
            return f"{defined_in}.{wanted}", value
    raise AttributeError(f"module 'scdiffkit.{old}' has no attribute {name!r}")


MEMORY: dict[str, Any] = {  # two keywords that are now one
    "backed": ("memory", {True: "disk", False: "ram", None: "auto"}),
    "max_memory": ("memory", {None: "auto"}),
}


def renamed_keywords(**renamed: str | tuple[str, dict[Any, Any]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to accept the old names of keywords, with a DeprecationWarning.

    A keyword is given as old="new", or old=("new", {old value: new value}) if values are translated, too.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        today = signature(function).parameters  # `progress` was a callback and is now a switch

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, now in renamed.items():
                new, values = (now, {}) if isinstance(now, str) else now
                if old in kwargs and (old not in today or callable(kwargs[old])):
                    if new in kwargs:
                        raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}.")
                    value = kwargs.pop(old)
                    kwargs[new] = values.get(value, value) if values else value
                    shown = "..." if not values else repr(kwargs[new])
                    message = f"{function.__name__}({old}=...) is now {new}={shown}"
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return called

    return decorate


def migrate_codec_auc(stored: Mapping[str, float]) -> dict[str, float]:
    """Rename the key `floor`, which older runs and cells store among the AUCs of the codec, to `real_reference`."""
    return {"real_reference" if name == "floor" else name: value for name, value in stored.items()}


def renamed_attributes(**renamed: str) -> Callable[[Any, str], Any]:
    """Return a __getattr__ that lets a class keep the old names of attributes, given as old="new"."""

    def look_up_attribute(self: Any, name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        message = f"{type(self).__name__}.{name} is now {renamed[name]}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(self, renamed[name])

    return look_up_attribute


OPTIONS = {"--backed": ["--memory", "disk"], "--in-memory": ["--memory", "ram"], "--max-memory": ["--memory"]}


def renamed_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace old names of options in a command line. Also returns a message for each replacement."""
    now: list[str] = []
    messages = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name in OPTIONS:
            now += [*OPTIONS[name], *([value] if equals else [])]
            messages.append(f"{name} is now {' '.join(OPTIONS[name])}.")
        else:
            now.append(word)
    return now, messages

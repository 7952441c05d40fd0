"""What had another name before: modules that were sorted into folders, and keywords. They still work, and warn."""

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

MOVED: dict[str, tuple[str, ...]] = {  # old module -> where its names are now
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
    """A module of before: its names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            return look_up(self.__name__.removeprefix("scdiffkit."), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    # scdiffkit.train and others are functions, also once a module of the same name was imported.

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
    """A name of an old module, with a DeprecationWarning that says where it is now. Raises AttributeError."""
    where, value = _find(old, name)
    warnings.warn(f"scdiffkit.{old}.{name} is now {where}.", DeprecationWarning, stacklevel=3)
    return value


def install() -> None:
    """Let old modules be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def _find(old: str, name: str) -> tuple[str, Any]:
    wanted = RENAMED.get(name, name)
    for place in MOVED[old]:
        module = importlib.import_module(f"scdiffkit.{place}")
        if hasattr(module, wanted):
            value = getattr(module, wanted)
            defined_in = getattr(value, "__module__", module.__name__)  # the module may only import it
            return f"{defined_in}.{wanted}", value
    raise AttributeError(f"module 'scdiffkit.{old}' has no attribute {name!r}")


MEMORY: dict[str, Any] = {  # two keywords that are one now
    "backed": ("memory", {True: "disk", False: "ram", None: "auto"}),
    "max_memory": ("memory", {None: "auto"}),
}


def renamed_keywords(**renamed: str | tuple[str, dict[Any, Any]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keywords by the names they had before, with a DeprecationWarning.

    old="new", or old=("new", {old value: new value}).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        today = signature(function).parameters  # `progress` was a callback, and is a switch

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


def todays_codec_auc(stored: Mapping[str, float]) -> dict[str, float]:
    """The AUCs of a codec alone as runs and cells store them; their `floor` is the `real_reference` now."""
    return {"real_reference" if name == "floor" else name: value for name, value in stored.items()}


def renamed_attributes(**renamed: str) -> Callable[[Any, str], Any]:
    """A class's __getattr__, with which attributes have the names they had before, too; old="new"."""

    def look_up_attribute(self: Any, name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        message = f"{type(self).__name__}.{name} is now {renamed[name]}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(self, renamed[name])

    return look_up_attribute


OPTIONS = {"--backed": ["--memory", "disk"], "--in-memory": ["--memory", "ram"], "--max-memory": ["--memory"]}


def renamed_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with today's names of options, and a message for each that had another before."""
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

"""The options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scdiffkit.errors import ConfigError
from scdiffkit.evaluation.cell_sets import MIN_CELLS
from scdiffkit.metrics import GENE_SETS, METRICS, PROTOCOLS, Space
from scdiffkit.metrics.profiles import FAST, FULL, ONE_RESAMPLE, asked_for, chosen_metrics

RESAMPLES = 5
MAX_CELLS = 1000
FAST_CELLS = 400


@dataclass(frozen=True)
class EvaluateConfig:
    """The options of `evaluate`. metrics: the requested names of metrics and profiles."""

    label: str | None
    conditions: tuple[str, ...]
    donor: str | None
    batch: str | None
    protocol: str | None
    metrics: tuple[str, ...]
    seed: int
    max_cells: int
    resamples: int
    fast: bool

    @classmethod
    def of(
        cls,
        *,
        label: str | None = None,
        conditions: Sequence[str] = (),
        donor: str | None = None,
        batch: str | None = None,
        protocol: str | None = None,
        metrics: str | Sequence[str] = FULL,
        seed: int = 0,
        max_cells: int = MAX_CELLS,
        resamples: int = RESAMPLES,
        fast: bool = False,
    ) -> EvaluateConfig:
        """Create the options from the arguments of `evaluate`. Raises ConfigError for invalid values or metrics."""
        asked = asked_for(metrics)
        if fast and asked == (FULL,):
            asked = (FAST,)
        chosen_metrics(asked)
        fast = fast or any(name in ONE_RESAMPLE for name in asked)
        if fast:
            resamples, max_cells = 1, min(max_cells, FAST_CELLS)
        if max_cells < MIN_CELLS:
            raise ConfigError(f"--max-cells must be at least {MIN_CELLS}, not {max_cells}.")
        if resamples < 1:
            raise ConfigError(f"--resamples must be at least 1, not {resamples}.")
        if protocol is not None and protocol not in PROTOCOLS:
            raise ConfigError(f"There is no --protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
        return cls(label, tuple(conditions), donor, batch, protocol, asked, seed, max_cells, resamples, fast)

    @property
    def chosen(self) -> frozenset[str]:
        """The names of the metrics to compute."""
        return frozenset(chosen_metrics(self.metrics))

    @property
    def spaces(self) -> list[Space]:
        """The gene sets that these metrics need."""
        return [space for space in GENE_SETS if any(METRICS[name].space == space for name in self.chosen)]

    @property
    def needs_counts(self) -> bool:
        """Whether genes are selected on the real cells' raw counts."""
        by_protocol = self.protocol is not None and PROTOCOLS[self.protocol].genes not in ("all", "cv")
        return bool(self.spaces) or by_protocol

    def check_conditions(self) -> None:
        """Raise ConfigError if the protocol compares conditions and no condition column is given."""
        if self.protocol is None or self.conditions:
            return
        if all("conditions" in METRICS[name].needs for name in PROTOCOLS[self.protocol].metrics):
            raise ConfigError(f"--protocol {self.protocol} compares conditions: name their obs column (--condition).")

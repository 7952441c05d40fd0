"""Selection of the metrics to compute: all of them, a profile, or metrics by name."""

from __future__ import annotations

from collections.abc import Sequence

from scdiffkit.errors import ConfigError, did_you_mean
from scdiffkit.metrics.registry import METRICS

# The verdict needs these: whether a classifier distinguishes the cells, and whether they are copies.
ALWAYS = ("rf_auc", "rf_auc_hvg_seurat", "exact_duplicates", "near_duplicates", "nn_ratio", "membership_auc")
MINIMAL = (
    *ALWAYS, "zeros_mae", "mean_mae", "variance_mae", "library_size", "genes_detected", "mmd_pca", "precision",
    "recall", "type_f1",
)  # fmt: skip
# The metrics printed by the command line and by R; the report has all of them.
HEADLINES = (
    "rf_auc", "rf_auc_genes", "rf_auc_hvg_seurat", "mmd_pca", "precision", "recall", "coverage", "zeros_mae",
    "library_size", "correlation_structure", "type_f1", "marker_overlap", "lfc_slope", "lfc_conditions", "nn_ratio",
    "exact_duplicates", "membership_auc",
)  # fmt: skip
FULL, FAST, MINIMAL_PROFILE = "full", "fast", "minimal"
ONE_RESAMPLE = (FAST, MINIMAL_PROFILE)  # profiles that use one resample of few cells
PROFILES = (FULL, FAST, MINIMAL_PROFILE)


def asked_for(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Split the `metrics` argument, a sequence of names or one comma-separated text, into distinct names."""
    names = [metrics] if isinstance(metrics, str) else metrics
    return tuple(dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip()))


def chosen_metrics(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to compute, in the order of METRICS: the requested ones and ALWAYS.

    asked: names of metrics and profiles. Raises ConfigError if it is empty, or if a name is neither a metric nor a
    profile.
    """
    of_profile = {
        FULL: [name for name, m in METRICS.items() if m.default],
        FAST: [name for name, m in METRICS.items() if m.default],
        MINIMAL_PROFILE: MINIMAL,
    }
    if not asked:
        raise ConfigError(f"--metrics names no metric: give some, or one of {', '.join(PROFILES)}.")
    chosen = set(ALWAYS)
    for name in asked:
        if name not in of_profile and name not in METRICS:
            known = [*PROFILES, *(n for n, m in METRICS.items() if m.default)]
            raise ConfigError(f"There is no metric {name!r} (--metrics); {did_you_mean(name, known)}")
        if name in METRICS and not METRICS[name].default:
            raise ConfigError(f"{name} is computed in the genes of a --protocol: ask for that instead (--metrics).")
        chosen.update(of_profile.get(name, [name]))
    return tuple(name for name in METRICS if name in chosen)

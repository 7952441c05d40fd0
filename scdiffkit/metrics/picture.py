"""Real and synthetic cells side by side, in one layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.spaces import as_csr, principal_components

REAL, SYNTHETIC = "#0072B2", "#E69F00"  # blue and orange of Okabe & Ito 2008
# Paul Tol's "muted" scheme, safe for colour-blind readers, and black; rarer types share a grey
COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#AA4499", "#999933", "#882255", "#000000",
)  # fmt: skip
# Tol's "light" scheme, for dark pages, and white
LIGHT_COLOURS = (
    "#77AADD", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00", "#EEDD88", "#EE8866", "#FFAABB", "#DDDDDD", "#FFFFFF",
)  # fmt: skip
OTHER = "#C8C8C8"
DPI = 150
N_NEIGHBORS = 15


def layout(real: Any, synthetic: Any, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """UMAP positions (n, 2) and (m, 2) of real (n, G) and synthetic (m, G) cells, log1p-normalised.

    Both together make the principal components and the map, so that what is unlike either side shows.
    """
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    components = principal_components(sparse.vstack([as_csr(real), as_csr(synthetic)], format="csr"))
    if components.shape[1] < 2:
        components = np.pad(components, ((0, 0), (0, 1)))
    start = components[:, :2] / (components[:, 0].std() or 1.0)
    start += np.random.default_rng(seed).normal(0, 1e-4, start.shape)  # no two cells start at one place
    n_neighbors = min(N_NEIGHBORS, len(components) - 1)
    # exact neighbours, which spares compiling UMAP's approximate search: a third of the time on first use
    distances, neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors(components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on a fixed seed and given neighbours, which are meant
        umap = UMAP(
            n_neighbors=n_neighbors,
            min_dist=0.3,
            n_epochs=300,
            init=start,
            precomputed_knn=(neighbours, distances),
            force_approximation_algorithm=True,
            random_state=seed,
            n_jobs=1,
        )
        positions = umap.fit_transform(components)
    return positions[: real.shape[0]], positions[real.shape[0] :]


def draw(
    path: Path,
    real: np.ndarray,
    synthetic: np.ndarray,
    real_types: np.ndarray | None = None,
    synthetic_types: np.ndarray | None = None,
    *,
    label: str | None = None,
    seed: int = 0,
) -> None:
    """Write a PNG: real (n, 2) and synthetic (m, 2) positions laid over each other and, given types (n,) and
    (m,), each side alone in the colours of its types."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.3) if real_types is None else (13.5, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if real_types is None else 3)
    size = float(np.clip(12000 / (len(real) + len(synthetic)), 2.5, 24))
    both = np.vstack([real, synthetic])
    margin = 0.04 * np.ptp(both, axis=0) + 1e-9
    low, high = both.min(axis=0) - margin, both.max(axis=0) + margin
    for ax in axes:
        ax.set(xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        for spine in ax.spines.values():
            spine.set_color("#BBBBBB")

    def points(ax: Any, xy: np.ndarray, colours: Any, alpha: float = 0.8) -> None:
        ax.scatter(xy[:, 0], xy[:, 1], s=size, c=colours, alpha=alpha, linewidths=0, rasterized=True)

    order = np.random.default_rng([seed, 6]).permutation(len(both))  # neither side covers the other
    points(axes[0], both[order], np.repeat([REAL, SYNTHETIC], [len(real), len(synthetic)])[order], 0.6)
    axes[0].set_title("Real and synthetic cells")
    legend(axes[0], {f"real ({len(real):,})": REAL, f"synthetic ({len(synthetic):,})": SYNTHETIC}, ncols=2)
    if real_types is None:
        points(axes[1], synthetic, SYNTHETIC, 0.6)
        axes[1].set_title("Synthetic cells")
    else:
        seen = real_types if synthetic_types is None else np.concatenate([real_types, synthetic_types])
        colours, n_other = colours_of(seen)
        sides = (("Real", real, real_types), ("Synthetic", synthetic, synthetic_types))
        for ax, (title, xy, types) in zip(axes[1:], sides):
            known = types is not None
            points(ax, xy, OTHER if types is None else [colours.get(name, OTHER) for name in types])
            ax.set_title(f"{title} by {label}" if known else f"{title} (no {label})")
        others = {f"{n_other} other types": OTHER} if n_other else {}
        legend(figure, colours | others, loc="outside right center")
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def colours_of(types: np.ndarray, *, dark: bool = False) -> tuple[dict[str, str], int]:
    """A colour for each of the most frequent types, in the order of their names; how many have none. dark: the page."""
    names, counts = np.unique(types, return_counts=True)
    frequent = sorted(names[np.argsort(-counts, kind="stable")][: len(COLOURS)])
    return dict(zip(frequent, LIGHT_COLOURS if dark else COLOURS)), len(names) - len(frequent)


def legend(place: Any, colours: dict[str, str], **options: Any) -> None:
    """Coloured dots and their names; on a figure with `loc`, else below an axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=colour, markeredgewidth=0, label=name)
        for name, colour in colours.items()
    ]
    if "loc" not in options:
        options |= {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
    place.legend(handles=handles, frameon=False, handletextpad=0.2, columnspacing=1.0, **options)

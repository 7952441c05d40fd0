"""Plots of the report: each is drawn from arrays, once for light and once for dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scdiffkit.metrics.marginals import mean_per_gene, trend, variance_per_gene, zeros_per_gene

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DPI = 110
# Paul Tol's "muted" scheme, which is safe for colour-blind readers, and black; other types share a grey
COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#AA4499", "#999933", "#882255", "#000000",
)  # fmt: skip
# Paul Tol's "light" scheme and white, for dark pages
LIGHT_COLOURS = (
    "#77AADD", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00", "#EEDD88", "#EE8866", "#FFAABB", "#DDDDDD", "#FFFFFF",
)  # fmt: skip
BINS = 24
STRONGEST = 30  # number of genes in a heat map of correlations


@dataclass(frozen=True)
class Theme:
    """Colours of a page.

    Real and synthetic cells also differ in brightness, and their lines in dashes, so that they can be printed in grey.
    Blues and orange are those of Okabe & Ito 2008.
    """

    text: str
    page: str
    faint: str
    real: str
    synthetic: str = "#E69F00"
    other: str = "#888888"


LIGHT = Theme(text="#1b1b1b", page="#ffffff", faint="#d9d9d9", real="#0072B2")
DARK = Theme(text="#e6e6e6", page="#16181b", faint="#3a3d42", real="#56B4E9")


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, for light and for dark pages, with an alternative text for readers who cannot see it."""

    light: bytes
    dark: bytes
    alt: str
    width: int
    height: int

    def uri(self, page: Literal["light", "dark"]) -> str:
        """Return the picture as a data URI that a page can embed."""
        return "data:image/png;base64," + base64.b64encode(self.light if page == "light" else self.dark).decode()


def picture(draw: Callable[[Theme, Figure], None], alt: str, size: tuple[float, float]) -> Picture:
    """Create a picture by calling draw(theme, figure) for light and for dark pages. size is in inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pngs: list[bytes] = []
    places: list[Bbox] = []
    for theme in (LIGHT, DARK):
        colours: dict[Any, Any] = {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), theme.text),
            **dict.fromkeys(("xtick.color", "ytick.color"), theme.text),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.page),
            "axes.edgecolor": theme.faint,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
        }  # fmt: skip
        with mpl.rc_context(colours), io.BytesIO() as file:
            figure = Figure(figsize=size, layout=None if places else "constrained")
            FigureCanvasAgg(figure)
            draw(theme, figure)
            for ax, place in zip(figure.axes, places):
                ax.set_position(place)
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
            places = [ax.get_position() for ax in figure.axes]  # reused: layout takes half of the time
            pngs.append(file.getvalue())
    return Picture(light=pngs[0], dark=pngs[1], alt=alt, width=int(size[0] * DPI), height=int(size[1] * DPI))


def embedding(
    name: str,
    real: np.ndarray,
    synthetic: np.ndarray,
    types: Sequence[np.ndarray | None],
    label: str | None,
    seed: int,
) -> Picture:
    """Plot positions (n, 2) and (m, 2) in one panel, and each set in a panel of its own, coloured by type.

    types: of the real and of the synthetic cells, at least (n,) and (m,), or None for a set without types.
    """
    types = [t if t is None else t[: len(xy)] for t, xy in zip(types, (real, synthetic))]
    both = np.vstack([real, synthetic])
    margin = 0.04 * np.ptp(both, axis=0) + 1e-9
    size = float(np.clip(9000 / len(both), 2, 20))
    order = np.random.default_rng([seed, 6]).permutation(len(both))  # so that neither set covers the other
    seen = [of_side for of_side in types if of_side is not None]

    def draw(theme: Theme, figure: Figure) -> None:
        axes = figure.subplots(1, 3)
        for ax in axes:
            low, high = both.min(axis=0) - margin, both.max(axis=0) + margin
            ax.set(xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        side = np.repeat([theme.real, theme.synthetic], [len(real), len(synthetic)])
        axes[0].scatter(*both[order].T, s=size, c=side[order], alpha=0.6, linewidths=0)
        axes[0].set_title("real and synthetic")
        marks = {f"real ({len(real):,})": theme.real, f"synthetic ({len(synthetic):,})": theme.synthetic}
        _legend(axes[0], marks, ncols=2)
        colours, n_other = _colours_of(np.concatenate(seen), dark=theme is DARK) if seen else ({}, 0)
        sides = (("real", real, types[0], theme.real), ("synthetic", synthetic, types[1], theme.synthetic))
        for ax, (title, xy, of_side, plain) in zip(axes[1:], sides):
            shown = plain if of_side is None else [colours.get(t, theme.other) for t in of_side]
            ax.scatter(*xy.T, s=size, c=shown, alpha=0.8, linewidths=0)
            ax.set_title(title if of_side is None else f"{title} by {label}")
        if colours:
            others = {f"{n_other} other types": theme.other} if n_other else {}
            _legend(figure, colours | others, loc="outside right center")

    centres = f"Points of both sets lie in one {name} layout, fitted to both together"
    alt = (
        f"{name} of {len(real)} real and {len(synthetic)} synthetic cells. {centres}; similar cells lie close together."
    )
    return picture(draw, alt, (12, 3.9))


def distributions(titles: Sequence[str], pairs: Sequence[tuple[np.ndarray, np.ndarray]], alt: str) -> Picture:
    """Plot a histogram of each pair of real (n,) and synthetic (m,) values."""
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)

    def draw(theme: Theme, figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for ax, title, (a, b) in zip(axes, titles, pairs):
            edges = np.histogram_bin_edges(np.concatenate([a, b]), BINS)
            for values, colour, style, name in (
                (a, theme.real, "-", "real"),
                (b, theme.synthetic, "--", "synthetic"),
            ):
                share = np.histogram(values, edges)[0] / len(values)
                ax.stairs(share, edges, color=colour, linestyle=style, linewidth=1.8, label=name)
            ax.set_title(title, fontsize=9)
            ax.tick_params(labelsize=8)
            ax.set_ylim(bottom=0)
        for ax in axes[len(pairs) :]:
            ax.set_axis_off()
        axes[0].set_ylabel("fraction of cells")
        axes[0].legend(frameon=False, fontsize=8)

    return picture(draw, alt, (3 * columns, 2.4 * rows))


def trends(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> Picture:
    """Plot each gene's variance and share of zeros against its mean, for cells (n, G) and (m, G)."""
    sides = [
        (mean_per_gene(x), np.log10(np.maximum(variance_per_gene(x), 1e-9)), zeros_per_gene(x))
        for x in (real, synthetic)
    ]

    def draw(theme: Theme, figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for ax, k, name in ((axes[0], 1, "log10 variance"), (axes[1], 2, "fraction of zeros")):
            looks = ((theme.real, "-", "real"), (theme.synthetic, "--", "synthetic"))
            for side, (colour, style, who) in zip(sides, looks):
                seen = side[0] > 0
                ax.scatter(np.log10(side[0][seen]), side[k][seen], s=3, c=colour, alpha=0.25, linewidths=0)
                ax.plot(*trend(side[0], side[k]), color=colour, linestyle=style, linewidth=2.2, label=who)
            ax.set(xlabel="log10 mean of log1p-normalised values", ylabel=name)
        axes[0].legend(frameon=False)

    alt = "Variance and fraction of zeros of each gene against its mean, in real and synthetic cells, with trend lines."
    return picture(draw, alt, (10, 3.8))


def correlations(genes: np.ndarray, sides: dict[str, sparse.csr_matrix]) -> Picture:
    """Plot the correlations of the most variable genes within each set of cells (n, G).

    genes: the G gene names. The first set determines the genes and, by clustering, their order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    first = next(iter(sides.values()))
    chosen = np.argsort(-variance_per_gene(first), kind="stable")[:STRONGEST]
    matrices = {name: _correlation_matrix(x[:, chosen].toarray()) for name, x in sides.items()}
    reference = next(iter(matrices.values()))
    order = leaves_list(linkage(reference, "average")) if len(chosen) > 2 else np.arange(len(chosen))

    def draw(theme: Theme, figure: Figure) -> None:
        axes = figure.subplots(1, len(matrices))
        for ax, (name, matrix) in zip(axes, matrices.items()):
            image = ax.imshow(matrix[np.ix_(order, order)], vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
            ax.set_title(name)
            ax.set(xticks=[], yticks=[])
        if len(chosen) <= STRONGEST:
            axes[0].set_yticks(range(len(chosen)), genes[chosen][order], fontsize=5)
        figure.colorbar(image, ax=axes, shrink=0.8, label="Pearson correlation")

    alt = (
        f"Correlations between the {len(chosen)} most variable genes in {', '.join(sides)}; the genes are in the "
        "same order in all panels."
    )
    return picture(draw, alt, (11, 3.9))


def dots(
    genes: Sequence[str], types: Sequence[str], sides: dict[str, tuple[np.ndarray, np.ndarray]], label: str
) -> Picture:
    """Plot marker genes by cell type.

    sides: for each set, the share of cells with a gene and its mean, (types, genes) each.
    """
    most = max(float(mean.max()) for _, mean in sides.values()) or 1.0

    def draw(theme: Theme, figure: Figure) -> None:
        axes = figure.subplots(1, len(sides), sharey=True)
        x, y = np.meshgrid(np.arange(len(genes)), np.arange(len(types)))
        for ax, (name, (share, mean)) in zip(np.atleast_1d(axes), sides.items()):
            colours = {"cmap": "cividis", "vmin": 0, "vmax": most}
            image = ax.scatter(x.ravel(), y.ravel(), s=90 * share.ravel(), c=mean.ravel(), **colours)
            ax.set_title(name)
            ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=7)
            ax.set_yticks(range(len(types)), types, fontsize=8)
            ax.set(xlim=(-0.7, len(genes) - 0.3), ylim=(len(types) - 0.4, -0.6))
        figure.colorbar(image, ax=axes, shrink=0.8, label="mean log1p value")

    alt = (
        f"Markers of each {label} in {' and '.join(sides)} cells: a dot's area is the fraction of cells in which "
        f"the gene is detected, its brightness the mean. Genes: {', '.join(genes)}."
    )
    return picture(draw, alt, (max(9.0, 0.32 * len(genes) * len(sides) + 3), 1.6 + 0.28 * len(types)))


def _correlation_matrix(cells: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlations between genes, (G, G); 0 for constant genes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.atleast_2d(np.corrcoef(cells.T)))


def _colours_of(types: np.ndarray, *, dark: bool = False) -> tuple[dict[str, str], int]:
    """Assign colours to the most frequent types, in the order of their names; also return the number of other types.

    dark: whether the page is dark.
    """
    names, counts = np.unique(types, return_counts=True)
    frequent = sorted(names[np.argsort(-counts, kind="stable")][: len(COLOURS)])
    return dict(zip(frequent, LIGHT_COLOURS if dark else COLOURS)), len(names) - len(frequent)


def _legend(place: Any, colours: dict[str, str], **options: Any) -> None:
    """Add a legend of coloured dots: at `loc` on a figure, or without `loc` below an axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=colour, markeredgewidth=0, label=name)
        for name, colour in colours.items()
    ]
    if "loc" not in options:
        options |= {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
    place.legend(handles=handles, frameon=False, handletextpad=0.2, columnspacing=1.0, **options)

"""Two-dimensional layouts (UMAP, t-SNE) of real and synthetic cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.spaces import as_csr, principal_components

N_NEIGHBORS = 15
TSNE_CELLS = 500  # per set
TSNE_STEPS = 500  # enough for TSNE_CELLS cells per set


def umap_layout(real: Any, synthetic: Any, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Compute UMAP positions (n, 2) and (m, 2) of real (n, G) and synthetic (m, G) cells, log1p-normalised.

    Principal components and UMAP are fitted to both sets together, so that differences between them show.
    """
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    components = principal_components(sparse.vstack([as_csr(real), as_csr(synthetic)], format="csr"))
    if components.shape[1] < 2:
        components = np.pad(components, ((0, 0), (0, 1)))
    start = components[:, :2] / (components[:, 0].std() or 1.0)
    start += np.random.default_rng(seed).normal(0, 1e-4, start.shape)  # no two cells start at the same position
    n_neighbors = min(N_NEIGHBORS, len(components) - 1)
    # exact neighbours avoid the compilation of UMAP's approximate search, a third of the time on first use
    distances, neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors(components)
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


def tsne_layout(real: Any, synthetic: Any, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Compute t-SNE positions of the first 500 cells per set; arguments and result are those of `umap_layout`."""
    from sklearn.manifold import TSNE

    sides = [as_csr(side[:TSNE_CELLS]) for side in (real, synthetic)]
    components = principal_components(sparse.vstack(sides, format="csr"))
    tsne = TSNE(
        perplexity=min(30, (len(components) - 1) / 3),
        init="random" if components.shape[1] < 2 else "pca",
        max_iter=TSNE_STEPS,
        random_state=seed,
    )
    positions = tsne.fit_transform(components)
    return positions[: sides[0].shape[0]], positions[sides[0].shape[0] :]


LAYOUTS = {"UMAP": umap_layout, "t-SNE": tsne_layout}

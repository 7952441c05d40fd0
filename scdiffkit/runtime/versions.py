"""Versions of the libraries that results depend on; runs, cells and reports record them."""

from __future__ import annotations

from importlib import metadata

OF_MODELS = ("scdiffkit", "torch", "anndata", "numpy")
OF_CELLS = ("scdiffkit", "torch", "anndata")
OF_SCORES = ("scdiffkit", "numpy", "scipy", "scikit-learn", "umap-learn", "pot", "anndata")


def version_of(package: str) -> str:
    """Return the installed version of a package, "unknown" for a source tree that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {package: version_of(package) for package in packages}

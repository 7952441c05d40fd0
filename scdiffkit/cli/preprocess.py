"""scdiff preprocess: raw counts in, prepared cells out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import Backed, Join, MaxMemory, parse_bytes, result


def preprocess(
    input: Annotated[
        list[Path],
        typer.Argument(
            help="Raw counts: h5ad, zarr, loom, 10x folder or 10x h5; several, or a folder of them.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Prepared cells (h5ad or loom).", show_default=False)],
    label: Annotated[
        list[str] | None, typer.Option(help="obs column that must be usable as a label; repeatable.")
    ] = None,
    n_top_genes: Annotated[int | None, typer.Option(help="Number of highly variable genes (2000).")] = None,
    hvg_flavor: Annotated[
        str | None, typer.Option(help="seurat_v3, seurat, cell_ranger, cv (scRDiT) or all (seurat_v3).")
    ] = None,
    genes: Annotated[Path | None, typer.Option(help="File with the genes to use, one a line.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column within which genes are ranked.")] = None,
    min_counts: Annotated[int | None, typer.Option(help="Drop cells with fewer counts (1).")] = None,
    max_counts: Annotated[int | None, typer.Option(help="Drop cells with more counts (off).")] = None,
    min_genes: Annotated[int | None, typer.Option(help="Drop cells with fewer detected genes (1).")] = None,
    max_genes: Annotated[int | None, typer.Option(help="Drop cells with more detected genes (off).")] = None,
    max_mito: Annotated[
        float | None, typer.Option(help="Drop cells with a larger mitochondrial share, 0..1 (off).")
    ] = None,
    mito_prefix: Annotated[str | None, typer.Option(help="How mitochondrial genes start (MT-).")] = None,
    min_cells: Annotated[int | None, typer.Option(help="Drop genes detected in fewer cells (3).")] = None,
    target_sum: Annotated[float | None, typer.Option(help="Counts per cell after normalisation (10000).")] = None,
    backed: Backed = None,
    max_memory: MaxMemory = None,
    join: Join = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Filter cells and genes, normalise, choose genes; every figure is logged."""
    from scdiffkit.config import PreprocessConfig, make
    from scdiffkit.errors import ConfigError
    from scdiffkit.io import check_output, open_cells
    from scdiffkit.preprocessing.pipeline import prepare

    listed = None
    if genes is not None:
        try:
            listed = tuple(line.strip() for line in genes.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"The list of genes {genes} cannot be read: {e}") from e
        hvg_flavor = hvg_flavor or "list"
    config = make(
        PreprocessConfig,
        min_counts=min_counts, max_counts=max_counts, min_genes=min_genes, max_genes=max_genes, max_mito=max_mito,
        mito_prefix=mito_prefix, min_cells=min_cells, hvg_flavor=hvg_flavor, n_top_genes=n_top_genes, genes=listed,
        batch_key=batch_key, target_sum=target_sum, join=join,
    )  # fmt: skip
    if output.suffix not in (".h5ad", ".loom"):
        raise ConfigError(f"{output}: prepared cells fit into .h5ad and .loom only; 10x formats hold counts alone.")
    check_output(output, force=force)
    _, cells = open_cells(input, backed=backed, max_memory=parse_bytes(max_memory))
    prepared = prepare(cells, config, label=label)
    prepared.write(output, force=force)
    chosen = int(prepared.var["highly_variable"].sum())
    result(f"{output}: {len(prepared.obs)} cells x {len(prepared.var)} genes, {chosen} to train on")

"""scdiff preprocess: prepare raw counts for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import INPUT, Join, Memory, choices, result

CELLS = "Filters of cells"
GENES = "Genes"


def preprocess(
    input: Annotated[
        list[Path],
        typer.Argument(
            help="Raw counts: h5ad, zarr, loom, 10x folder or 10x h5. Several files, or a folder of them, become one "
            "data set.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--out", "--output", help="Prepared cells (h5ad or loom).", show_default=False, rich_help_panel=INPUT
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(help="obs column that must be usable as a label; repeatable.", rich_help_panel=CELLS),
    ] = None,
    min_counts: Annotated[
        int | None,
        typer.Option(help="Minimum number of counts per cell.", show_default="1", rich_help_panel=CELLS),
    ] = None,
    max_counts: Annotated[
        int | None,
        typer.Option(help="Maximum number of counts per cell.", rich_help_panel=CELLS),
    ] = None,
    min_genes: Annotated[
        int | None,
        typer.Option(help="Minimum number of detected genes per cell.", show_default="1", rich_help_panel=CELLS),
    ] = None,
    max_genes: Annotated[
        int | None,
        typer.Option(help="Maximum number of detected genes per cell.", rich_help_panel=CELLS),
    ] = None,
    max_mito: Annotated[
        float | None,
        typer.Option(help="Maximum fraction of mitochondrial counts per cell, 0 to 1.", rich_help_panel=CELLS),
    ] = None,
    mito_prefix: Annotated[
        str | None,
        typer.Option(
            help="Prefix of mitochondrial genes, in upper or lower case.", show_default="MT-", rich_help_panel=CELLS
        ),
    ] = None,
    min_cells: Annotated[
        int | None,
        typer.Option(
            help="Minimum number of cells in which a gene is detected.", show_default="3", rich_help_panel=GENES
        ),
    ] = None,
    n_top_genes: Annotated[
        int | None,
        typer.Option(help="Number of highly variable genes.", show_default="2000", rich_help_panel=GENES),
    ] = None,
    hvg_flavor: Annotated[
        str | None,
        typer.Option(
            help="How highly variable genes are selected; cv is scRDiT's, all uses every gene.",
            show_default="seurat_v3",
            rich_help_panel=GENES,
            **choices("seurat_v3", "seurat", "cell_ranger", "cv", "all"),
        ),
    ] = None,
    genes: Annotated[
        Path | None,
        typer.Option(help="File with the genes to use instead, one per line.", rich_help_panel=GENES),
    ] = None,
    batch_key: Annotated[
        str | None,
        typer.Option(
            help="obs column with batches; genes are ranked within each and the ranks merged.", rich_help_panel=GENES
        ),
    ] = None,
    target_sum: Annotated[
        float | None,
        typer.Option(help="Counts per cell after normalisation.", show_default="10000", rich_help_panel=GENES),
    ] = None,
    memory: Memory = "auto",
    join: Join = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel=INPUT)
    ] = False,
) -> None:
    """Filter cells and genes, normalise, and select genes. The effect of every step is logged."""
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
        raise ConfigError(
            f"{output}: prepared cells can only be written as .h5ad or .loom, because 10x formats hold only counts."
        )
    check_output(output, force=force)
    _, cells = open_cells(input, memory)
    prepared = prepare(cells, config, label=label)
    prepared.write(output, force=force)
    chosen = int(prepared.var["highly_variable"].sum())
    result(f"{output}: {len(prepared.obs)} cells x {len(prepared.var)} genes, {chosen} of them selected")

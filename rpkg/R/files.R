#' Read and write files of cells
#'
#' @param path h5ad, loom, a 10x folder or 10x h5. `scdiff_write()`: `.h5ad`,
#'   `.loom` or a folder.
#' @param as `"Seurat"`, `"SingleCellExperiment"` or `"list"` (of `counts`,
#'   `data` if there are log values, `obs`, `var`).
#' @param object Cells: see [scdiff_train()].
#' @param force Replace the file.
#' @param assay The assay with the raw counts.
#' @param obs A data frame of the cells, for a matrix.
#' @return `scdiff_read()`: cells; `scdiff_write()`: the path, invisibly.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' file <- tempfile(fileext = ".h5ad")
#' scdiff_write(blood, file)
#' all(scdiff_read(file)$counts == blood$counts)
#' @export
scdiff_read <- function(path, as = "list") {
  as <- chosen_kind(as, "list")
  if (as == "path") {
    return(path_of(path, "path"))
  }
  unpack_cells(call_python("read", path = path_of(path, "path")), as)
}

#' @rdname scdiff_read
#' @export
scdiff_write <- function(object, path, force = FALSE, assay = NULL, obs = NULL) {
  if (is.null(path)) {
    fail("`path` is needed: give the file or folder to write.")
  }
  if (is_path(object)) {
    fail("`object` must be cells, not a path.")
  }
  invisible(call_python("write",
    data = pack_cells(object, "object", assay, obs), path = path_of(path, "path"), force = flag(force, "force")
  ))
}

#' Filter cells and genes, normalise, choose genes
#'
#' [scdiff_train()] does this with the defaults if it is given raw counts. Here,
#' every step has its options, and its effect is reported.
#'
#' @param data Cells with raw counts, see [scdiff_train()].
#' @param label Columns that must be usable as labels.
#' @param n_top_genes,hvg_flavor,genes,batch_key Selection of highly variable genes:
#'   their number and the method (`"seurat_v3"`, `"seurat"`, `"cell_ranger"`, `"cv"`,
#'   `"all"`), or their names; with `batch_key`, genes are ranked within each group
#'   of that column and the ranks merged.
#' @param min_counts,max_counts,min_genes,max_genes,max_mito,mito_prefix Filters of
#'   cells.
#' @param min_cells Genes detected in fewer cells are left out.
#' @param target_sum Counts per cell after normalisation.
#' @param output Write to this file (h5ad or loom) instead of returning cells.
#' @param as Kind of the result; by default the kind of `data`.
#' @inheritParams scdiff_train
#' @return Cells with raw counts, log-normalised values, and `highly_variable`, a
#'   column of their genes.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' prepared <- scdiff_preprocess(blood, n_top_genes = 100, hvg_flavor = "cv")
#' sum(prepared$var$highly_variable)
#' @export
scdiff_preprocess <- function(data, label = NULL, n_top_genes = NULL, hvg_flavor = NULL, genes = NULL,
                              batch_key = NULL, min_counts = NULL, max_counts = NULL, min_genes = NULL,
                              max_genes = NULL, max_mito = NULL, mito_prefix = NULL, min_cells = NULL,
                              target_sum = NULL, output = NULL, as = NULL, force = FALSE, assay = NULL, obs = NULL) {
  as <- chosen_kind(as, if (!is.null(output) || is_path(data)) "path" else kind_of(data))
  if (as == "path" && is.null(output)) {
    fail("`output` is needed: give a file for the prepared cells, or give `as` to return them.")
  }
  check_columns(data, c(label, batch_key), obs)
  options <- list(
    n_top_genes = whole(n_top_genes, "n_top_genes"), hvg_flavor = text(hvg_flavor, "hvg_flavor"),
    genes = text(genes, "genes", several = TRUE), batch_key = text(batch_key, "batch_key"),
    min_counts = whole(min_counts, "min_counts"), max_counts = whole(max_counts, "max_counts"),
    min_genes = whole(min_genes, "min_genes"), max_genes = whole(max_genes, "max_genes"), max_mito = max_mito,
    mito_prefix = text(mito_prefix, "mito_prefix"), min_cells = whole(min_cells, "min_cells"), target_sum = target_sum
  )
  made <- call_python("preprocess",
    data = pack_cells(data, "data", assay, obs), label = text(label, "label", several = TRUE), options = options,
    output = if (as == "path") path_of(output, "output"), force = flag(force, "force")
  )
  if (as == "path") {
    return(made)
  }
  before <- if (!is_path(data)) cells_of(data, "data", assay, obs)$obs # dates and the like as they were
  unpack_cells(made, as, if (as == kind_of(data)) assay %||% active_assay(data), obs = before[setdiff(names(before), "total_counts")])
}

#' Describe a run or a file
#'
#' @param path A run, its folder, a file of cells, or a folder of runs or files.
#' @return A list, which prints as `scdiff info` does.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' file <- tempfile(fileext = ".h5ad")
#' scdiff_write(blood, file)
#' scdiff_info(file)
#' @export
scdiff_info <- function(path) {
  path <- if (inherits(path, "scdiff_run")) existing(path) else path_of(path, "path")
  described <- jsonlite::fromJSON(call_python("info", path = path), simplifyDataFrame = FALSE)
  structure(described, class = "scdiff_info")
}

#' @export
print.scdiff_info <- function(x, ...) {
  utils::str(unclass(x), no.list = TRUE, give.attr = FALSE, give.head = FALSE, vec.len = 6)
  invisible(x)
}

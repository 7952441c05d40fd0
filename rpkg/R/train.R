#' Train a model on your cells
#'
#' Trains a diffusion model on raw counts, conditioned on the cell types and on
#' further columns. For a few thousand cells, this takes minutes on a laptop. An
#' interrupt in R saves the run, and `resume = TRUE` continues it.
#'
#' @param data A Seurat object, a SingleCellExperiment, a matrix of raw counts
#'   (genes x cells; with `obs`), a list of `counts` and `obs`, or a path (h5ad,
#'   loom, 10x folder, 10x h5).
#' @param label Column of the cells with the cell types; for a Seurat object also
#'   `"ident"`, its identities.
#' @param condition Further columns to condition on, such as donor or treatment.
#' @param arch Architecture: `"dit"`, `"whitebox"` or `"unet"`; by default the first
#'   of the preset.
#' @param preset `"small"` (default), `"base"`, `"large"`, `"scrdit"` or
#'   `"whitebox-dit"`.
#' @param config A YAML file of settings, such as a run's `config.yaml`.
#' @param codec `"count"` (integers of all genes; default) or `"gene"`.
#' @param n_top_genes,patch_size,hidden_size,depth,num_heads,prediction_type,schedule
#'   Settings of the model.
#' @param set A named list of any other setting, such as
#'   `list(model.ista_lambda = 0.2)`.
#' @param max_steps,max_epochs,max_time Length of the training in steps, in epochs,
#'   or in seconds (also `"10m"` or `"2h"`).
#' @param batch_size,lr,val_fraction,seed Settings of the training.
#' @param holdout Fraction of the cells held out from all stages of training, for
#'   [scdiff_evaluate()]; by default none.
#' @param holdout_by Column whose groups, such as donors, are left out as a whole
#'   instead.
#' @param resume Continue the run in `out`, by default the latest run; `data` may
#'   then be left out if the run was trained on files.
#' @param out Folder of the run; by default a new one in `scdiff-runs/`.
#' @param device,precision Device to compute on, and floating-point precision;
#'   chosen automatically by default.
#' @param devices Number of processes that share every batch, one per GPU or core.
#' @param memory Where the cells of files (h5ad, zarr) are kept: in memory (`"ram"`),
#'   in their files (`"disk"`), or in their files only if they do not fit into free
#'   memory (`"auto"`) or into an amount such as `"8G"`.
#' @param backed,max_memory Deprecated; use `memory`.
#' @param force Replace the run in `out`.
#' @param assay The assay with the raw counts; by default the active assay of a
#'   Seurat object, or `"counts"` of a SingleCellExperiment.
#' @param obs A data frame of the cells, for a matrix.
#' @return A run, see [scdiff_run()].
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' run <- scdiff_train(blood, label = "cell_type", max_steps = 20, out = tempfile())
#' cells <- scdiff_sample(run, n = 50, where = list(cell_type = "Dendritic"), ddim = 5)
#' table(cells$obs$cell_type)
#' @export
scdiff_train <- function(data = NULL, label = NULL, condition = NULL, arch = NULL, preset = NULL, config = NULL,
                         codec = NULL, n_top_genes = NULL, patch_size = NULL, hidden_size = NULL, depth = NULL,
                         num_heads = NULL, prediction_type = NULL, schedule = NULL, set = list(), max_steps = NULL,
                         max_epochs = NULL, max_time = NULL, batch_size = NULL, lr = NULL, val_fraction = NULL,
                         holdout = NULL, holdout_by = NULL, seed = NULL, resume = FALSE, out = NULL, device = NULL, devices = NULL, precision = NULL,
                         memory = "auto", force = FALSE, assay = NULL, obs = NULL, backed = NULL, max_memory = NULL) {
  if (!is.null(backed)) {
    memory <- if (flag(backed, "backed")) "disk" else "ram"
    .Deprecated(msg = sprintf("`backed` is now `memory = \"%s\"`.", memory))
  }
  if (!is.null(max_memory)) {
    memory <- as.character(max_memory)
    .Deprecated(msg = sprintf("`max_memory` is now `memory = \"%s\"`.", memory))
  }
  options <- list(
    codec = text(codec, "codec"), n_top_genes = whole(n_top_genes, "n_top_genes"),
    patch_size = whole(patch_size, "patch_size"), hidden_size = whole(hidden_size, "hidden_size"),
    depth = whole(depth, "depth"), num_heads = whole(num_heads, "num_heads"),
    prediction_type = text(prediction_type, "prediction_type"), schedule = text(schedule, "schedule"),
    max_steps = whole(max_steps, "max_steps"), max_epochs = whole(max_epochs, "max_epochs"),
    batch_size = whole(batch_size, "batch_size"), lr = lr, val_fraction = val_fraction,
    holdout = holdout, holdout_by = text(holdout_by, "holdout_by"), seed = whole(seed, "seed"),
    device = text(device, "device"), devices = whole(devices, "devices"), precision = text(precision, "precision"),
    set = if (length(set)) set
  )
  check_columns(data, c(label, condition, holdout_by), obs, optional = TRUE)
  if (length(set) && (!is.list(set) || is.null(names(set)))) {
    fail("`set` must be a named list, such as list(model.ista_lambda = 0.2).")
  }
  about <- list(
    as = kind_of(data), assay = assay %||% active_assay(data), label = label, conditions = as.list(c(label, condition))
  )
  path <- call_python("train",
    data = pack_cells(data, "data", assay, obs, optional = flag(resume, "resume"), labels = c(label, condition, holdout_by)), 
    origin = if (!is.null(data)) as.character(jsonlite::toJSON(about, auto_unbox = TRUE, null = "null")),
    options = options, arch = text(arch, "arch"), preset = text(preset, "preset"), label = text(label, "label"),
    condition = text(condition, "condition", several = TRUE), config = path_of(config, "config"),
    max_time = if (!is.null(max_time)) as.character(max_time), memory = as.character(memory), resume = flag(resume, "resume"), out = path_of(out, "out"),
    force = flag(force, "force")
  )
  scdiff_run(path)
}

active_assay <- function(x) if (inherits(x, "Seurat")) SeuratObject::DefaultAssay(x)

# Columns that are not there are named before anything is sent.
check_columns <- function(x, wanted, obs = NULL, name = "data", optional = FALSE) {
  if (is_path(x) || (optional && is.null(x))) {
    return(invisible())
  }
  there <- switch(kind_of(x),
    Seurat = c(names(slot(x, "meta.data")), "ident"),
    SingleCellExperiment = names(SummarizedExperiment::colData(x)),
    names(obs %||% if (is.list(x) && !is.data.frame(x)) x$obs)
  )
  for (column in wanted) {
    if (!column %in% there) {
      fail(sprintf("`%s` has no column '%s' of its cells; %s", name, column, nearest(column, there)))
    }
  }
}

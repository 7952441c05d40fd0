#' Draw new cells from a trained run
#'
#' @param run A run or its folder; the latest run by default.
#' @param n Number of cells; by default 1000, or as many as in `like`.
#' @param where Draw only cells with these values: a list such as
#'   `list(cell_type = "B", condition = c("stim", "ctrl"))`. Combinations that no
#'   training cell had are extrapolated.
#' @param like Cells whose composition and library sizes are copied.
#' @param sampler `"ddim"` (default), `"dpm++"` (DPM-Solver++, second order) or
#'   `"ddpm"`, which uses all steps of training.
#' @param steps Number of steps of `"ddim"` (50) or `"dpm++"` (20).
#' @param ddim,ddpm Short forms: `ddim = 20` is `sampler = "ddim", steps = 20`, and
#'   `ddpm = TRUE` is `sampler = "ddpm"`.
#' @param speedup,eta Use T / `speedup` steps, as in the scRDiT paper; noise of
#'   `"ddim"` (0 for none, 1 for that of `"ddpm"`).
#' @param cfg_scale Scale of classifier-free guidance (1 is none): one number, or a
#'   named list with a number for each condition.
#' @param library_size Counts per cell: `"like"` (default), `"median"` or a number.
#' @param seed Random seed; the same seed gives the same cells.
#' @param batch_size,device,precision Cells per batch, device to compute on, and
#'   floating-point precision.
#' @param devices Number of GPUs, or of processes on the CPU, that share the work
#'   (1); the cells do not depend on it.
#' @param as Kind of the result: `"Seurat"`, `"SingleCellExperiment"`, `"list"` or
#'   `"path"`; by default the kind that the run was trained on in R, or else a list.
#' @param output The file to write if `as` is `"path"` (`"cells.h5ad"`; also `.loom`
#'   or a 10x folder).
#' @param force Replace `output`.
#' @param assay The assay of `like` with the raw counts; by default the assay that
#'   the run was trained on.
#' @return Cells with raw counts and log-normalised values of all genes, and the
#'   conditions as factors. The identities of a Seurat object are set to the label.
#' @inherit scdiff_train examples
#' @export
scdiff_sample <- function(run = NULL, n = NULL, where = NULL, like = NULL, sampler = NULL, steps = NULL, ddim = NULL,
                          ddpm = FALSE, speedup = NULL, eta = NULL, cfg_scale = NULL, library_size = NULL, seed = 0,
                          batch_size = NULL, device = NULL, devices = NULL, precision = NULL, as = NULL, output = NULL, force = FALSE,
                          assay = NULL) {
  path <- if (is.null(run)) scdiff_run()$path else existing(run)
  about <- origin_of(path)
  as <- chosen_kind(as, if (!is.null(output)) "path" else about$as %||% "list")
  if (as != "path" && !is.null(output)) {
    fail("`output` is only written if `as` is \"path\": leave one of them out.")
  }
  where <- if (!is.null(where)) as.list(where)
  if (!is.null(where) && (is.null(names(where)) || !all(nzchar(names(where))))) {
    fail("`where` must be a named list, such as list(cell_type = \"B\").")
  }
  options <- list(
    sampler = text(sampler, "sampler"), steps = whole(steps, "steps"), ddim = whole(ddim, "ddim"),
    ddpm = flag(ddpm, "ddpm"), speedup = whole(speedup, "speedup"),
    eta = eta, cfg_scale = if (length(cfg_scale) > 1 || !is.null(names(cfg_scale))) as.list(cfg_scale) else cfg_scale,
    library_size = library_size, seed = whole(seed, "seed"), batch_size = whole(batch_size, "batch_size"),
    device = text(device, "device"), devices = whole(devices, "devices"), precision = text(precision, "precision")
  )
  made <- call_python("sample",
    run = path, n = whole(n, "n"), where = lapply(where, function(values) as.list(as.character(values))),
    like = pack_cells(like, "like", own_assay(like, assay %||% about$assay), optional = TRUE, labels = about$conditions), options = options,
    output = if (as == "path") path_of(output %||% "cells.h5ad", "output"), force = flag(force, "force")
  )
  if (as == "path") made else unpack_cells(made, as, if (identical(as, about$as)) about$assay, about$label)
}

# What kind of cells a run was trained on in R; NULL where it was not.
origin_of <- function(path) {
  about <- call_python("origin", path = path)
  if (!is.null(about)) jsonlite::fromJSON(about)
}

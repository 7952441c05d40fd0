#' Add synthetic cells to rare types
#'
#' Trains on the object (or uses a run that was trained on it), draws cells of the
#' named types until each type has the wanted number of cells, and returns the
#' object with these cells appended.
#'
#' @param object A Seurat object, a SingleCellExperiment, or a list of `counts`
#'   and `obs`.
#' @param label Column with the cell types.
#' @param target Number of cells that each named type has in the result, such as
#'   `c("pDC" = 500)`.
#' @param run A run that was trained on these cells with this label; by default, a
#'   new one is trained.
#' @param ... Passed on to [scdiff_train()], such as `max_time = "5m"`.
#' @param sample A list of arguments for [scdiff_sample()], such as
#'   `list(ddim = 20)`.
#' @param seed Random seed; the same seed gives the same cells.
#' @param assay The assay with the raw counts.
#' @return The object with more cells. The logical column `synthetic` marks synthetic
#'   cells, including those that an earlier call added (a new model is not trained
#'   on them); the names of synthetic cells begin with `synthetic_`. Columns that
#'   are determined by the label are filled in for the new cells, and so are
#'   `nCount_` and `nFeature_`; all other columns are `NA`. If the identities of a
#'   Seurat object are not determined by the label, those of the new cells are the
#'   label. Genes that the model leaves out (detected in fewer than three cells) are
#'   zero in the new cells. Log values are added if the object has them. Other
#'   assays, reductions and graphs, which cover only the old cells, are left out.
#'   The folder of the run is in the attribute `run` of a list, in
#'   `Misc(object, "scdiffkit")$run` of a Seurat object, and in
#'   `metadata(object)$scdiffkit$run` of a SingleCellExperiment.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' more <- scdiff_augment(blood, "cell_type", c("CD8 T" = 60), max_steps = 20, out = tempfile())
#' table(more$obs$cell_type, more$obs$synthetic)
#' @export
scdiff_augment <- function(object, label, target, run = NULL, ..., sample = list(), seed = 0, assay = NULL) {
  kind <- kind_of(object)
  if (kind == "path") {
    fail("`object` must be an object, not a path: read it first with scdiff_read().")
  }
  if (!is.null(run) && ...length() > 0) {
    fail(sprintf("`run` is already trained, and %s is an option of training: leave one of them out.", paste0("`", ...names(), "`", collapse = ", ")))
  }
  label <- text(label, "label")
  assay <- assay %||% active_assay(object)
  check_columns(object, label, name = "object")
  before <- cells_of(object, "object", assay)
  earlier <- before$obs$synthetic %||% FALSE
  if (!is.logical(earlier)) {
    fail("`object` already has a column 'synthetic' that is not logical (TRUE or FALSE): rename it.")
  }
  before$obs$synthetic <- earlier & !is.na(earlier)
  if (!is.numeric(target) || is.null(names(target)) || anyNA(target) || any(target != round(target) | target < 0) ||
    anyDuplicated(names(target))) {
    fail("`target` must be whole numbers with the types as names, each type once, such as c(\"pDC\" = 500).")
  }
  there <- table(as.character(before$obs[[label]]))
  for (type in names(target)) {
    if (!type %in% names(there)) {
      fail(sprintf("`target`: no cell has the %s '%s'; %s", label, type, nearest(type, names(there))))
    }
  }
  lacking <- target - as.vector(there[names(target)])
  lacking <- lacking[lacking > 0]
  if (length(lacking) == 0) {
    fail(sprintf(
      "`target`: there are already as many cells (%s). Give larger numbers.",
      paste0(names(target), " ", there[names(target)], collapse = ", ")
    ))
  }
  run <- run %||% scdiff_train(
    without(object, kind, before$obs$synthetic),
    label = label, ..., assay = if (kind == "list") NULL else assay
  )
  path <- absolute(existing(run))
  made <- lapply(seq_along(lacking), function(i) {
    wanted <- list(
      run = path, n = lacking[[i]], where = stats::setNames(list(names(lacking)[i]), label), seed = seed + i - 1, as = "list"
    )
    do.call(scdiff_sample, c(wanted, sample))
  })
  with_cells(object, kind, joined(before, made, label, assay), assay, path)
}

# The object without some of its cells.
without <- function(object, kind, drop) {
  if (!any(drop)) {
    return(object)
  }
  if (kind != "list") {
    return(object[, !drop])
  }
  for (part in intersect(c("counts", "data"), names(object))) {
    object[[part]] <- object[[part]][, !drop, drop = FALSE]
  }
  object$obs <- object$obs[!drop, , drop = FALSE]
  object
}

# Real cells first, then synthetic ones, in the real ones' genes and columns.
joined <- function(before, made, label, assay) {
  genes <- rownames(before$counts)
  padded <- function(m, name) {
    rows <- match(rownames(m), genes)
    if (anyNA(rows)) {
      fail(sprintf(
        "`run` was trained on other genes: `object` lacks %d of them (such as '%s').", sum(is.na(rows)), rownames(m)[is.na(rows)][1]
      ))
    }
    triplets <- Matrix::summary(m)
    Matrix::sparseMatrix(
      i = rows[triplets$i], j = triplets$j, x = triplets$x, dims = c(length(genes), ncol(m)),
      dimnames = list(genes, name)
    )
  }
  totals <- vapply(made, function(cells) ncol(cells$counts), integer(1))
  names <- paste0("synthetic_", seq_len(sum(totals)))
  names <- utils::tail(make.unique(c(colnames(before$counts), names)), length(names))
  of_set <- split(names, rep(seq_along(made), totals))
  join <- function(slot) {
    cbind(before[[slot]], do.call(cbind, Map(function(cells, name) padded(cells[[slot]], name), made, of_set)))
  }
  counts <- join("counts")
  obs <- before$obs
  new <- obs[rep(NA_integer_, length(names)), , drop = FALSE]
  rownames(new) <- names
  sampled <- do.call(rbind, lapply(made, function(cells) cells$obs[intersect(names(cells$obs), names(obs))]))
  for (column in names(sampled)) {
    values <- sampled[[column]]
    new[[column]] <- if (is.numeric(values)) values else obs[[column]][match(as.character(values), as.character(obs[[column]]))]
  }
  for (column in setdiff(names(obs), c(names(sampled), "synthetic"))) {
    if (!is.numeric(obs[[column]]) && follows(obs[[column]], obs[[label]])) {
      new[[column]] <- obs[[column]][match(as.character(new[[label]]), as.character(obs[[label]]))]
    }
  }
  added <- counts[, names, drop = FALSE]
  totals <- list(nCount = Matrix::colSums(added), nFeature = Matrix::colSums(added > 0))
  for (total in names(totals)) {
    column <- paste0(total, "_", assay)
    if (column %in% names(obs)) {
      new[[column]] <- methods::as(unname(totals[[total]]), class(obs[[column]]))
    }
  }
  new$synthetic <- TRUE
  own <- if (IDENT %in% names(obs)) IDENT else "ident"
  if (anyNA(new[[own]])) { # a Seurat object's cells need identities
    obs[[own]] <- as.character(obs[[own]])
    new[[own]] <- as.character(new[[label]])
  }
  list(counts = counts, data = if (!is.null(before$data)) join("data"), obs = rbind(obs, new), var = before$var)
}

# Whether each group has one value.
follows <- function(values, groups) {
  pairs <- unique(data.frame(values = as.character(values), groups = as.character(groups)))
  !anyDuplicated(pairs$groups)
}

with_cells <- function(object, kind, cells, assay, run) {
  if (kind == "list") {
    return(structure(cells[!vapply(cells, is.null, logical(1))], run = run))
  }
  if (kind == "SingleCellExperiment") {
    made <- sce_of(cells, assay %||% "counts")
    S4Vectors::metadata(made) <- utils::modifyList(S4Vectors::metadata(object), list(scdiffkit = list(run = run)))
    return(made)
  }
  made <- seurat_of(cells, assay, ident = NULL)
  misc <- slot(object, "misc")
  misc$scdiffkit <- c(slot(made, "misc")$scdiffkit, list(run = run))
  slot(made, "misc") <- misc
  slot(made, "project.name") <- slot(object, "project.name")
  made
}

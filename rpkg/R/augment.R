#' Add synthetic cells to rare types
#'
#' Trains on the object (or takes a run that was trained on it), draws cells of
#' the types named until each has as many as wanted, and returns the object with
#' them appended.
#'
#' @param object A Seurat object, a SingleCellExperiment, or a list of `counts`
#'   and `obs`.
#' @param label Column with the cell types.
#' @param target How many cells each type named is to have in the end, such as
#'   `c("pDC" = 500)`.
#' @param run A run that was trained on these cells with this label; default: a
#'   new one is trained.
#' @param ... Passed on to [scdiff_train()], such as `max_time = "5m"`.
#' @param seed Same seed, same cells.
#' @param assay The assay with the raw counts.
#' @return The object with more cells: `synthetic`, a column of its cells, tells
#'   which; their names begin with `synthetic_`. Genes that the model leaves out
#'   (seen in fewer than three cells) are zero in them. Log values are joined
#'   where the object has them; other assays, reductions and graphs, which are of
#'   the old cells alone, are left out. The run is in attribute `run` of a list, and in
#'   `Misc(object, "scdiffkit")$run` or `metadata(object)$scdiffkit$run`.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' more <- scdiff_augment(blood, "cell_type", c("CD8 T" = 60), max_steps = 20, out = tempfile())
#' table(more$obs$cell_type, more$obs$synthetic)
#' @export
scdiff_augment <- function(object, label, target, run = NULL, ..., seed = 0, assay = NULL) {
  kind <- kind_of(object)
  if (kind == "path") {
    fail("`object` must be an object, not a path: read it first, by scdiff_read().")
  }
  label <- text(label, "label")
  assay <- assay %||% active_assay(object)
  check_columns(object, label, assay, name = "object")
  before <- cells_of(object, "object", assay)
  if (!is.numeric(target) || is.null(names(target)) || anyNA(target) || any(target != round(target) | target < 0)) {
    fail("`target` must be whole numbers named by type, such as c(\"pDC\" = 500).")
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
      "`target`: there are as many cells already (%s). Ask for more.",
      paste0(names(target), " ", there[names(target)], collapse = ", ")
    ))
  }
  run <- run %||% scdiff_train(object, label = label, ..., assay = if (kind == "list") NULL else assay)
  made <- lapply(seq_along(lacking), function(i) {
    scdiff_sample(
      run,
      n = lacking[[i]], where = stats::setNames(list(names(lacking)[i]), label), seed = seed + i - 1, as = "list"
    )
  })
  after <- joined(before, made, label)
  path <- if (inherits(run, "scdiff_run")) run$path else run
  with_cells(object, kind, after, assay, path)
}

# Real cells first, then synthetic ones, in the real ones' genes and columns.
joined <- function(before, made, label) {
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
  obs <- before$obs
  obs$synthetic <- FALSE
  new <- obs[rep(NA_integer_, length(names)), , drop = FALSE]
  rownames(new) <- names
  new$synthetic <- TRUE
  sampled <- do.call(rbind, lapply(made, function(cells) cells$obs[intersect(names(cells$obs), names(obs))]))
  for (column in names(sampled)) {
    values <- as.character(sampled[[column]])
    new[[column]] <- if (is.factor(obs[[column]])) {
      factor(values, levels(obs[[column]]), ordered = is.ordered(obs[[column]]))
    } else {
      methods::as(values, class(obs[[column]])[1])
    }
  }
  list(counts = join("counts"), data = if (!is.null(before$data)) join("data"), obs = rbind(obs, new), var = before$var)
}

with_cells <- function(object, kind, cells, assay, run) {
  if (kind == "list") {
    return(structure(cells[!vapply(cells, is.null, logical(1))], run = run))
  }
  if (kind == "SingleCellExperiment") {
    made <- sce_of(cells)
    S4Vectors::metadata(made) <- c(S4Vectors::metadata(object), list(scdiffkit = list(run = run)))
    return(made)
  }
  made <- seurat_of(cells, assay, ident = NULL)
  misc <- slot(object, "misc")
  misc$scdiffkit <- c(slot(made, "misc")$scdiffkit, list(run = run))
  slot(made, "misc") <- misc
  slot(made, "project.name") <- slot(object, "project.name")
  made
}

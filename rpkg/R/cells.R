# Cells of every kind that R users have, as counts (genes x cells), log values
# where there are any, and data frames of cells and genes; and back.

# What came in, so that the same comes out: kind, assay, label.
KINDS <- c("Seurat", "SingleCellExperiment", "list", "path")

kind_of <- function(x) {
  if (inherits(x, "Seurat")) {
    "Seurat"
  } else if (inherits(x, "SummarizedExperiment")) {
    "SingleCellExperiment"
  } else if (is_path(x)) {
    "path"
  } else {
    "list"
  }
}

is_path <- function(x) is.character(x) && is.null(dim(x))

# For Python: a path as it is, cells as their bytes. `obs` belongs to a matrix.
# `labels`: columns whose values name groups, as they are written in R ("TRUE").
pack_cells <- function(x, name, assay = NULL, obs = NULL, optional = FALSE, labels = NULL) {
  if (is.null(x) && optional) {
    return(NULL)
  }
  if (is_path(x)) {
    return(path_of(x, name))
  }
  cells <- cells_of(x, name, assay, obs)
  m <- cells$counts
  if (nrow(m) == 0 || ncol(m) == 0) {
    fail(sprintf("`%s` is empty (%d genes x %d cells).", name, nrow(m), ncol(m)))
  }
  genes <- rownames(m)
  if (is.null(genes) || anyNA(genes) || !all(nzchar(genes))) {
    fail(sprintf("`%s` needs gene names as row names, and no name may be missing or empty.", name))
  }
  twice <- unique(genes[duplicated(genes)])
  if (length(twice)) {
    fail(sprintf(
      "`%s` has %d gene names more than once (such as '%s'): make them unique first, with make.unique(rownames(x)).",
      name, length(twice), twice[1]
    ))
  }
  if (anyDuplicated(colnames(m))) {
    fail(sprintf("`%s` has cell names more than once: make them unique first.", name))
  }
  for (label in intersect(labels, names(cells$obs))) {
    cells$obs[[label]] <- as_labels(cells$obs[[label]])
  }
  for (part in c("obs", "var")) {
    if (nrow(cells[[part]]) != if (part == "obs") ncol(m) else nrow(m)) {
      fail(sprintf("`%s`: `%s` has %d rows for %d genes x %d cells.", name, part, nrow(cells[[part]]), nrow(m), ncol(m)))
    }
  }
  if (!is.null(cells$data) && !identical(dim(cells$data), dim(m))) {
    fail(sprintf("`%s`: `data` and `counts` have different genes or cells.", name))
  }
  list(
    counts = pack_matrix(cells$counts),
    data = if (!is.null(cells$data)) pack_matrix(cells$data),
    obs = pack_frame(cells$obs), var = pack_frame(cells$var),
    cells = pack_strings(colnames(m)), genes = pack_strings(genes)
  )
}

as_labels <- function(x) {
  if (is.factor(x) || is.character(x)) x else factor(as.character(x), as.character(sort(unique(x))))
}

cells_of <- function(x, name, assay = NULL, obs = NULL) {
  assay <- text(assay, "assay")
  loadNamespace("Matrix") # the classes of sparse matrices; late, for it takes a second
  found <- switch(kind_of(x),
    Seurat = cells_of_seurat(x, name, assay),
    SingleCellExperiment = cells_of_sce(x, name, assay),
    cells_of_list(x, name, obs)
  )
  if (is.null(colnames(found$counts)) && ncol(found$counts) > 0) { # as read10xCounts() leaves them
    colnames(found$counts) <- rownames(found$obs) <- paste0("cell_", seq_len(ncol(found$counts)))
    if (!is.null(found$data)) {
      colnames(found$data) <- colnames(found$counts)
    }
  }
  found
}

cells_of_list <- function(x, name, obs) {
  if (is.list(x) && !is.data.frame(x)) {
    obs <- obs %||% x$obs
    var <- x$var
    data <- x$data
    x <- x$counts
  } else {
    var <- data <- NULL
  }
  if (length(dim(x)) != 2) {
    fail(sprintf(
      "`%s` must be a Seurat object, a SingleCellExperiment, a matrix of genes x cells (with `obs`, a data frame of its cells), a list of counts and obs, or a path.",
      name
    ))
  }
  if (!is.null(obs) && !is.data.frame(obs)) {
    fail("`obs` must be a data frame with a row for each cell (obs[rows, , drop = FALSE] keeps it one).")
  }
  if (is.null(obs)) {
    obs <- empty_frame(colnames(x) %||% seq_len(ncol(x)))
  }
  if (nrow(obs) != ncol(x)) {
    fail(sprintf("`obs` has %d rows and `%s` %d cells (columns): a row for each cell is needed.", nrow(obs), name, ncol(x)))
  }
  named <- is.character(attr(obs, "row.names"))
  if (named && !is.null(colnames(x)) && !identical(rownames(obs), colnames(x))) {
    if (!setequal(rownames(obs), colnames(x))) {
      fail(sprintf("The row names of `obs` are not the cells (column names) of `%s`.", name))
    }
    obs <- obs[colnames(x), , drop = FALSE]
  }
  list(counts = as_sparse(x), data = if (!is.null(data)) as_sparse(data), obs = obs, var = var %||% empty_frame(rownames(x)))
}

IDENT <- ".scdiffkit_ident" # the identities, where a column has the name "ident"

cells_of_seurat <- function(x, name, assay) {
  need("SeuratObject", "Seurat objects")
  assays <- names(slot(x, "assays"))
  assay <- assay %||% SeuratObject::DefaultAssay(x)
  if (!assay %in% assays) {
    fail(sprintf("`%s` has no assay '%s' (`assay`); %s", name, assay, nearest(assay, assays)))
  }
  of_assay <- x[[assay]]
  counts <- layer_of(of_assay, "counts")
  data <- layer_of(of_assay, "data")
  if (is.null(counts)) {
    fail(sprintf(
      "The assay '%s' of `%s` has no raw counts (layer 'counts'), which the model is trained on: name another assay with `assay` (there are %s), or give the object from before normalisation.",
      assay, name, paste0("'", assays, "'", collapse = ", ")
    ))
  }
  if (identical(data, counts)) { # Seurat 4 keeps the counts there until they are normalised
    data <- NULL
  }
  counts <- as_sparse(counts)
  obs <- slot(x, "meta.data")
  obs[[if ("ident" %in% names(obs)) IDENT else "ident"]] <- SeuratObject::Idents(x)
  rownames(counts) <- original_names(x, assay, rownames(counts))
  list(counts = counts, data = if (!is.null(data)) as_sparse(data), obs = obs[colnames(counts), , drop = FALSE], var = features_of(of_assay, rownames(counts)))
}

# A layer whole, of old and new assays; NULL where it is not there.
layer_of <- function(assay, layer) {
  if ("counts" %in% slotNames(assay)) { # class Assay, as Seurat 4 makes them
    m <- slot(assay, layer)
    return(if (length(m)) m)
  }
  seurat <- asNamespace("SeuratObject")
  layers <- suppressWarnings(get("Layers", seurat)(assay, search = layer)) # it warns where there is none
  if (length(layers) == 0) {
    return(NULL)
  }
  if (length(layers) > 1) {
    assay <- get("JoinLayers", seurat)(assay, layers = layer)
    layers <- get("Layers", seurat)(assay, search = layer)
  }
  get("LayerData", seurat)(assay, layer = layers[1])
}

features_of <- function(assay, genes) {
  features <- if ("meta.features" %in% slotNames(assay)) slot(assay, "meta.features") else as.data.frame(assay[[]])
  if (ncol(features) == 0) empty_frame(genes) else features
}

# Seurat allows no underscores in the names of genes; what they were is kept aside.
original_names <- function(x, assay, genes) {
  kept <- slot(x, "misc")$scdiffkit$genes[[assay]]
  if (is.null(kept)) {
    return(genes)
  }
  at <- match(genes, names(kept))
  ifelse(is.na(at), genes, kept[at])
}

cells_of_sce <- function(x, name, assay) {
  need("SummarizedExperiment", "SingleCellExperiment objects")
  assays <- SummarizedExperiment::assayNames(x)
  assay <- assay %||% "counts"
  if (!assay %in% assays) {
    fail(sprintf("`%s` has no assay '%s' (`assay`); %s", name, assay, nearest(assay, assays)))
  }
  data <- if (assay == "counts" && "logcounts" %in% assays) SummarizedExperiment::assay(x, "logcounts")
  list(
    counts = as_sparse(SummarizedExperiment::assay(x, assay)), data = if (!is.null(data)) as_sparse(data),
    obs = as.data.frame(SummarizedExperiment::colData(x), optional = TRUE),
    var = as.data.frame(SummarizedExperiment::rowData(x), optional = TRUE)
  )
}

# From Python's answer to the kind wanted.
# `obs`: columns that are taken from there, by the cells' names.
unpack_cells <- function(payload, as, assay = NULL, ident = NULL, obs = NULL) {
  genes <- unpack_strings(payload$genes)
  cells <- unpack_strings(payload$cells)
  found <- list(
    counts = if (!is.null(payload$counts)) unpack_matrix(payload$counts, genes, cells),
    data = if (!is.null(payload$data)) unpack_matrix(payload$data, genes, cells),
    obs = unpack_frame(payload$obs, cells), var = unpack_frame(payload$var, genes)
  )
  for (column in intersect(names(obs), names(found$obs))) {
    found$obs[[column]] <- obs[match(cells, rownames(obs)), column]
  }
  switch(as,
    Seurat = seurat_of(found, assay %||% "RNA", ident),
    SingleCellExperiment = sce_of(found, assay %||% "counts"),
    found[!vapply(found, is.null, logical(1))]
  )
}

seurat_of <- function(found, assay, ident) {
  need("SeuratObject", "Seurat objects")
  if (is.null(found$counts)) {
    warning("There are no raw counts, so the log values take their place.", call. = FALSE)
  }
  counts <- found$counts %||% found$data
  names <- rownames(counts)
  mangled <- make.unique(gsub("_", "-", names, fixed = TRUE))
  rownames(counts) <- mangled
  object <- SeuratObject::CreateSeuratObject(counts = counts, assay = assay)
  if (!is.null(found$data)) {
    rownames(found$data) <- mangled
    object <- set_data(object, assay, found$data)
  }
  made <- slot(object, "meta.data")
  obs <- found$obs
  own <- if (IDENT %in% names(obs)) IDENT else "ident"
  obs[[own]] <- NULL
  slot(object, "meta.data") <- cbind(made[setdiff(names(made), names(obs))], obs)
  if (ncol(found$var)) {
    var <- found$var
    rownames(var) <- mangled
    of_assay <- object[[assay]]
    if ("meta.features" %in% slotNames(of_assay)) {
      slot(of_assay, "meta.features") <- var
      object[[assay]] <- of_assay
    } else {
      object[[assay]] <- SeuratObject::AddMetaData(of_assay, var)
    }
  }
  if (!identical(names, mangled)) {
    misc <- slot(object, "misc")
    misc$scdiffkit$genes[[assay]] <- stats::setNames(names, mangled)
    slot(object, "misc") <- misc
  }
  ident <- if (!is.null(ident) && !is.null(found$obs[[ident]])) found$obs[[ident]] else found$obs[[own]]
  if (!is.null(ident)) {
    SeuratObject::Idents(object) <- ident
  }
  object
}

set_data <- function(object, assay, data) {
  of_assay <- object[[assay]]
  if ("data" %in% slotNames(of_assay)) {
    slot(of_assay, "data") <- data
  } else {
    of_assay <- get("LayerData<-", asNamespace("SeuratObject"))(of_assay, layer = "data", value = data)
  }
  object[[assay]] <- of_assay
  object
}

sce_of <- function(found, assay) {
  need("SingleCellExperiment", "SingleCellExperiment objects")
  assays <- stats::setNames(list(found$counts, found$data), c(assay, "logcounts"))
  SingleCellExperiment::SingleCellExperiment(
    assays = assays[!vapply(assays, is.null, logical(1))],
    colData = S4Vectors::DataFrame(found$obs, check.names = FALSE),
    rowData = S4Vectors::DataFrame(found$var, check.names = FALSE, row.names = rownames(found$var))
  )
}

empty_frame <- function(names) structure(list(), names = character(), class = "data.frame", row.names = as.character(names))

need <- function(package, what) {
  if (!requireNamespace(package, quietly = TRUE)) {
    fail(sprintf("%s need the package %s: install.packages(\"%s\") or BiocManager::install(\"%s\").", what, package, package, package))
  }
}

chosen_kind <- function(as, default) {
  if (is.null(as)) {
    return(default)
  }
  if (!is.character(as) || length(as) != 1 || !as %in% KINDS) {
    fail(sprintf("`as` must be one of %s.", paste0("'", KINDS, "'", collapse = ", ")))
  }
  as
}

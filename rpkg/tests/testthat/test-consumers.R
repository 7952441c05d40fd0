# What an analyst does first in Seurat, and with a SingleCellExperiment, on cells that were drawn.

KINDS_IN_ORDER <- c("T", "B", "Mono") # not the alphabet's

# 240 cells of three types, each with 15 genes that it expresses eight times as much as the others.
planted <- function() {
  if (is.null(state$planted)) {
    withr::with_seed(1, {
      type <- factor(sample(rep(KINDS_IN_ORDER, c(60, 100, 80))), KINDS_IN_ORDER)
      genes <- sprintf("gene%02d", 1:90)
      rates <- stats::rgamma(90, 1) + 0.2
      means <- vapply(type, function(t) rates * ifelse(genes %in% markers_of(t), 8, 1), rates)
      counts <- matrix(stats::rnbinom(length(means), size = 5, mu = means), 90)
      dimnames(counts) <- list(genes, sprintf("cell%03d", seq_along(type)))
      obs <- data.frame(cell_type = type, donor = factor(sample(c("d1", "d2"), 240, TRUE)), row.names = colnames(counts))
    })
    state$planted <- list(counts = as_sparse(counts), obs = obs)
  }
  state$planted
}

markers_of <- function(type) sprintf("gene%02d", 1:15 + 15L * (match(type, KINDS_IN_ORDER) - 1L))

real_object <- function() {
  real <- planted()
  object <- SeuratObject::CreateSeuratObject(real$counts, meta.data = real$obs)
  SeuratObject::Idents(object) <- "cell_type"
  object
}

run_of_planted <- function() {
  if (is.null(state$run_of_planted)) {
    state$run_of_planted <- scdiff_train(
      real_object(),
      label = "cell_type", condition = "donor", max_steps = 150, batch_size = 32, lr = 3e-3, hidden_size = 32,
      depth = 1, num_heads = 2, set = list("codec.max_steps" = 100), out = tempfile("planted-")
    )
  }
  state$run_of_planted
}

drawn <- function(...) scdiff_sample(run_of_planted(), ..., ddim = 10)

quietly <- function(code) suppressWarnings(suppressMessages(code))

expect_planted <- function(found, type) {
  found <- found[order(-found$avg_log2FC), ]
  best <- utils::head(rownames(found)[found$p_val_adj < 0.01], 5)
  expect_length(best, 5)
  expect_identical(setdiff(best, markers_of(type)), character(), info = type)
}

same_clusters <- function(a, b) { # share of cells whose cluster's most frequent label is their own
  sum(apply(table(a, b), 2, max)) / length(a)
}

test_that("Seurat goes from counts to clusters and their markers", {
  skip_if_no_seurat()
  cells <- drawn(n = 240)
  expect_identical(rownames(cells), rownames(real_object()))
  expect_identical(levels(cells), KINDS_IN_ORDER)
  expect_identical(as.vector(table(cells$cell_type)), c(60L, 100L, 80L))
  counts <- layer_of(cells[["RNA"]], "counts")
  expect_identical(unname(cells$nCount_RNA), unname(Matrix::colSums(counts)))
  expect_identical(as.integer(cells$nFeature_RNA), as.integer(Matrix::colSums(counts > 0)))
  before <- layer_of(cells[["RNA"]], "data")
  quietly({
    cells <- Seurat::NormalizeData(cells, verbose = FALSE)
    cells <- Seurat::FindVariableFeatures(cells, nfeatures = 30, verbose = FALSE)
    cells <- Seurat::ScaleData(cells, verbose = FALSE)
    cells <- Seurat::RunPCA(cells, npcs = 8, verbose = FALSE)
    cells <- Seurat::FindNeighbors(cells, dims = 1:8, verbose = FALSE)
    cells <- Seurat::FindClusters(cells, resolution = 0.3, verbose = FALSE)
  })
  # scanpy's and Seurat's normalisation are the same
  expect_equal(layer_of(cells[["RNA"]], "data"), before, tolerance = 1e-5)
  chosen <- SeuratObject::VariableFeatures(cells)
  expect_gt(mean(chosen %in% unlist(lapply(KINDS_IN_ORDER, markers_of))), 0.7)
  expect_gt(same_clusters(cells$cell_type, cells$seurat_clusters), 0.85)
  SeuratObject::Idents(cells) <- "cell_type"
  for (type in KINDS_IN_ORDER) {
    expect_planted(quietly(Seurat::FindMarkers(cells, ident.1 = type, verbose = FALSE)), type)
  }
})

test_that("markers of the types that were asked for are found, and others are no levels", {
  skip_if_no_seurat()
  cells <- drawn(n = 120, where = list(cell_type = c("Mono", "T")))
  expect_identical(levels(cells), c("T", "Mono"))
  expect_identical(levels(cells$cell_type), c("T", "Mono"))
  found <- quietly(Seurat::FindAllMarkers(cells, only.pos = TRUE, verbose = FALSE))
  expect_identical(levels(droplevels(found$cluster)), c("T", "Mono"))
  for (type in c("T", "Mono")) {
    own <- found[found$cluster == type, ]
    expect_planted(data.frame(own, row.names = own$gene), type)
  }
})

test_that("cells are merged with the real ones", {
  skip_if_no_seurat()
  real <- real_object()
  some <- drawn(n = 30, where = list(cell_type = "B"))
  others <- drawn(n = 20, where = list(cell_type = "T"))
  expect_identical(intersect(colnames(some), colnames(others)), character())
  real$origin <- "real"
  some$origin <- others$origin <- "synthetic"
  both <- merge(real, list(some, others))
  expect_equal(ncol(both), 290)
  expect_identical(colnames(both), c(colnames(real), colnames(some), colnames(others))) # none was renamed
  expected <- cbind(layer_of(real[["RNA"]], "counts"), layer_of(some[["RNA"]], "counts"), layer_of(others[["RNA"]], "counts"))
  expect_equal(as.matrix(layer_of(both[["RNA"]], "counts"))[rownames(expected), colnames(expected)], as.matrix(expected))
  labels <- c(as.character(real$cell_type), rep("B", 30), rep("T", 20))
  expect_identical(as.character(both$cell_type), labels)
  expect_identical(as.character(SeuratObject::Idents(both)), labels)
  expect_identical(as.vector(table(both$origin)), c(240L, 50L))
  quietly({
    if (inherits(both[["RNA"]], "Assay5")) {
      both[["RNA"]] <- get("JoinLayers", asNamespace("SeuratObject"))(both[["RNA"]])
    }
    both <- Seurat::NormalizeData(both, verbose = FALSE)
  })
  expect_planted(quietly(Seurat::FindMarkers(both, ident.1 = "B", verbose = FALSE)), "B")
})

test_that("cells are subset by type, name and gene", {
  skip_if_no_seurat()
  cells <- drawn(n = 60)
  mono <- subset(cells, idents = "Mono")
  expect_identical(unique(as.character(mono$cell_type)), "Mono")
  deep <- subset(cells, subset = nCount_RNA > stats::median(cells$nCount_RNA))
  expect_equal(ncol(deep), sum(cells$nCount_RNA > stats::median(cells$nCount_RNA)))
  part <- cells[c("gene03", "gene01"), rev(colnames(cells))[1:7]]
  expect_equal(dim(part), c(2, 7))
  counts <- layer_of(cells[["RNA"]], "counts")
  expect_equal(
    as.matrix(layer_of(part[["RNA"]], "counts")), as.matrix(counts[rownames(part), colnames(part)])
  )
})

test_that("files that were drawn are read by Seurat", {
  skip_if_no_seurat()
  expected <- layer_of(drawn(n = 40)[["RNA"]], "counts")
  folder <- quietly(drawn(n = 40, output = file.path(tempfile(), "folder")))
  expect_true(file.exists(file.path(folder, "matrix.mtx.gz")))
  counts <- Seurat::Read10X(folder)
  expect_identical(dimnames(counts), dimnames(expected))
  expect_equal(counts@x, expected@x)
  expect_identical(counts@i, expected@i)
  labels <- utils::read.delim(file.path(folder, "obs.tsv.gz"), row.names = 1)
  expect_identical(rownames(labels), colnames(counts))
  object <- SeuratObject::CreateSeuratObject(counts, meta.data = labels)
  SeuratObject::Idents(object) <- "cell_type"
  object <- quietly(Seurat::NormalizeData(object, verbose = FALSE))
  file <- drawn(n = 40, output = tempfile(fileext = ".h5ad"))
  read <- scdiff_read(file, as = "Seurat")
  expect_identical(layer_of(read[["RNA"]], "counts"), expected)
  expect_equal(layer_of(read[["RNA"]], "data"), layer_of(object[["RNA"]], "data"), tolerance = 1e-5)
  expect_identical(levels(read$cell_type), KINDS_IN_ORDER)
  expect_identical(as.character(read$cell_type), labels$cell_type)
})

test_that("an augmented object goes through Seurat", {
  skip_if_no_seurat()
  more <- scdiff_augment(real_object(), "cell_type", c("T" = 100), run = run_of_planted(), sample = list(ddim = 10))
  expect_identical(as.vector(table(more$cell_type)), c(100L, 100L, 80L))
  more <- quietly(Seurat::NormalizeData(more, verbose = FALSE))
  expect_planted(quietly(Seurat::FindMarkers(more, ident.1 = "T", verbose = FALSE)), "T")
  new <- more[, more$synthetic]
  expect_equal(ncol(new), 40)
})

test_that("columns of the genes come back", {
  skip_if_no_seurat()
  skip_if_not_installed("SingleCellExperiment")
  real <- planted()
  sce <- SingleCellExperiment::SingleCellExperiment(
    list(counts = real$counts),
    colData = S4Vectors::DataFrame(real$obs),
    rowData = S4Vectors::DataFrame(ID = sprintf("ENSG%05d", 1:90), Symbol = rownames(real$counts))
  )
  run <- scdiff_train(sce, label = "cell_type", max_steps = 3, set = list("codec.max_steps" = 3), out = tempfile())
  cells <- scdiff_sample(run, n = 30, ddim = 2)
  expect_s4_class(cells, "SingleCellExperiment")
  counts <- SingleCellExperiment::counts(cells)
  expect_identical(rownames(counts), rownames(real$counts))
  expect_true(all(counts@x == round(counts@x) & counts@x > 0))
  expect_false(is.unsorted(counts@p))
  expect_s3_class(cells$cell_type, "factor")
  expect_identical(levels(cells$cell_type), KINDS_IN_ORDER)
  expect_equal(cells$total_counts, unname(Matrix::colSums(counts)))
  features <- SummarizedExperiment::rowData(cells)
  expect_identical(as.character(features$ID), sprintf("ENSG%05d", 1:90))
  expect_identical(as.character(features$Symbol), rownames(real$counts))
  two <- scdiff_sample(run, n = 20, ddim = 2, where = list(cell_type = c("B", "T")))
  expect_identical(levels(two$cell_type), c("T", "B"))
  both <- SummarizedExperiment::cbind(
    SingleCellExperiment::SingleCellExperiment(list(counts = real$counts), colData = S4Vectors::DataFrame(real$obs["cell_type"])),
    SingleCellExperiment::SingleCellExperiment(list(counts = counts), colData = SummarizedExperiment::colData(cells)["cell_type"])
  )
  expect_identical(dim(both), c(90L, 270L))
  expect_identical(levels(both$cell_type), KINDS_IN_ORDER)
})

test_that("vectors of every kind come back bit by bit", {
  skip_if_no_python()
  values <- list(
    integer = c(1L, NA, -5L, .Machine$integer.max), double = c(1.5, NA, NaN, -Inf), logical = c(TRUE, NA, FALSE, TRUE),
    string = c("", NA, "\u00e4\u6f22 \U1F9EC", "NA"),
    factor = factor(c("b", NA, "a", "b"), levels = c("b", "unused", "a")),
    ordered = factor(c("lo", "hi", NA, "lo"), levels = c("lo", "hi"), ordered = TRUE)
  )
  m <- Matrix::sparseMatrix(i = 1:2, j = 3:4, x = c(2, 7), dims = c(2, 4), dimnames = list(c("g1", "g_2"), letters[1:4]))
  obs <- as.data.frame(values, row.names = letters[1:4], stringsAsFactors = FALSE)
  back <- echo(list(counts = m, obs = obs))
  expect_identical(back$counts, m)
  expect_identical(back$obs, obs)
  expect_identical(writeBin(back$obs$double, raw()), writeBin(values$double, raw())) # NA and NaN are told apart
})

test_that("random cells come back as they were", {
  skip_if_no_python()
  set.seed(1)
  words <- c("", "a", "\u03b2", "NA", "two words", "tab\t", "\u7d30\u80de")
  for (k in 1:25) {
    genes <- sample(c(1, 2, 7, 40), 1)
    n <- sample(c(1, 2, 9, 60), 1)
    m <- Matrix::rsparsematrix(genes, n, density = runif(1), rand.x = function(n) rpois(n, 3) + 1)
    dimnames(m) <- list(paste0("g_", seq_len(genes), sample(c("", "\u03b1"), 1)), paste0("cell", seq_len(n), "\u00df"))
    blank <- function(x) replace(x, runif(n) < 0.3, NA)
    columns <- list(
      integer = blank(sample.int(1000, n, TRUE)), double = blank(rnorm(n)), logical = blank(runif(n) < 0.5),
      string = blank(sample(words, n, TRUE)), factor = factor(blank(sample(words, n, TRUE)), sample(words)),
      "odd name \u00e9" = as.double(seq_len(n))
    )
    obs <- as.data.frame(columns[sample(length(columns), sample(0:6, 1))], optional = TRUE, stringsAsFactors = FALSE)
    if (ncol(obs) == 0) obs <- data.frame(row.names = colnames(m))
    rownames(obs) <- colnames(m)
    back <- echo(list(counts = m, obs = obs))
    expect_identical(back$counts, m)
    expect_identical(back$obs, obs)
  }
})

test_that("a Seurat object comes back as it was", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  object <- SeuratObject::pbmc_small
  back <- echo(object)
  expect_s4_class(back, "Seurat")
  expect_identical(layer_of(back[["RNA"]], "counts"), layer_of(object[["RNA"]], "counts"))
  expect_equal(layer_of(back[["RNA"]], "data"), layer_of(object[["RNA"]], "data"))
  expect_identical(slot(back, "meta.data"), slot(object, "meta.data"))
  expect_identical(SeuratObject::Idents(back), SeuratObject::Idents(object))
  expect_equal(features_of(back[["RNA"]], rownames(back)), features_of(object[["RNA"]], rownames(object)))
})

test_that("an assay of Seurat 5, its layers split, comes whole", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject", "5.0.0")
  counts <- layer_of(SeuratObject::pbmc_small[["RNA"]], "counts")
  object <- SeuratObject::CreateSeuratObject(counts)
  expect_true(inherits(object[["RNA"]], "Assay5"))
  groups <- rep(c("a", "b"), length.out = ncol(object))
  parted <- object
  parted[["RNA"]] <- split(parted[["RNA"]], f = groups)
  for (x in list(object, parted)) {
    back <- echo(x)
    expect_identical(layer_of(back[["RNA"]], "counts")[, colnames(counts)], counts)
    expect_identical(slot(back, "meta.data")[colnames(x), ], slot(x, "meta.data"))
  }
})

test_that("a SingleCellExperiment comes back as it was", {
  skip_if_no_python()
  skip_if_not_installed("SingleCellExperiment")
  counts <- blood$counts[1:40, 1:30]
  object <- SingleCellExperiment::SingleCellExperiment(
    list(counts = counts, logcounts = log1p(counts)),
    colData = S4Vectors::DataFrame(type = blood$obs$cell_type[1:30], score = seq(0, 1, length.out = 30)),
    rowData = S4Vectors::DataFrame(symbol = rev(rownames(counts)))
  )
  back <- echo(object)
  expect_identical(SummarizedExperiment::assay(back, "counts"), counts)
  expect_identical(SummarizedExperiment::assay(back, "logcounts"), log1p(counts))
  expect_identical(as.data.frame(SummarizedExperiment::colData(back)), as.data.frame(SummarizedExperiment::colData(object)))
  expect_identical(as.data.frame(SummarizedExperiment::rowData(back)), as.data.frame(SummarizedExperiment::rowData(object)))
})

test_that("names that Seurat changes come back as they went in", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  counts <- blood$counts
  rownames(counts)[1:2] <- c("HLA_A", "MT_1")
  file <- tempfile(fileext = ".h5ad")
  scdiff_write(counts, file, obs = blood$obs)
  object <- scdiff_read(file, as = "Seurat")
  expect_identical(rownames(object)[1:2], c("HLA-A", "MT-1"))
  again <- tempfile(fileext = ".h5ad")
  scdiff_write(object, again)
  expect_identical(rownames(scdiff_read(again)$counts), rownames(counts))
})

test_that("files of every format hold the same cells", {
  skip_if_no_python()
  for (name in c("cells.h5ad", "cells.loom", "cells")) {
    path <- file.path(tempfile(), name)
    dir.create(dirname(path))
    expect_identical(scdiff_write(blood, path), path)
    back <- scdiff_read(path)
    expect_identical(back$counts, blood$counts)
    expect_identical(as.character(back$obs$cell_type), as.character(blood$obs$cell_type))
  }
})

test_that("matrices of every class, and cells without names, go in", {
  skip_if_no_python()
  dense <- as.matrix(blood$counts[1:20, 1:10])
  wanted <- blood$counts[1:20, 1:10]
  classes <- list(dense, as.data.frame(dense), as(wanted, "TsparseMatrix"), as(wanted, "RsparseMatrix"))
  if (requireNamespace("DelayedArray", quietly = TRUE)) {
    classes <- c(classes, list(DelayedArray::DelayedArray(dense)))
  }
  for (m in classes) {
    expect_identical(echo(list(counts = m))$counts, wanted, info = class(m)[1])
  }
  colnames(dense) <- NULL
  expect_identical(colnames(echo(list(counts = dense))$counts), paste0("cell_", 1:10))
})

test_that("more than R's sparse matrices can hold is refused", {
  skip_if_no_python()
  half <- python_half()
  before <- reticulate::py_get_attr(half, "LONGEST")
  reticulate::py_set_attr(half, "LONGEST", length(blood$counts@x) - 1L)
  on.exit(reticulate::py_set_attr(half, "LONGEST", before))
  expect_refused(echo(blood), "2\\^31", class = "scdiffkit_data_error")
})

test_that("assays are found and named as they came", {
  skip_if_no_python()
  skip_if_not_installed("SingleCellExperiment")
  object <- SingleCellExperiment::SingleCellExperiment(list(umi = blood$counts), colData = S4Vectors::DataFrame(blood$obs))
  run <- scdiff_train(object, label = "cell_type", assay = "umi", max_steps = 2, out = tempfile())
  made <- scdiff_sample(run, like = object, ddim = 1)
  expect_identical(SummarizedExperiment::assayNames(made), c("umi", "logcounts"))
  more <- scdiff_augment(object, "cell_type", c("CD8 T" = 30), run = run, assay = "umi")
  expect_identical(SummarizedExperiment::assayNames(more), "umi")
})

test_that("columns of a user are kept, and what cannot be is refused", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  obs <- cbind(blood$obs, ident = "mine", day = as.Date("2020-01-01") + 1:300)
  object <- SeuratObject::CreateSeuratObject(blood$counts, meta.data = obs)
  SeuratObject::Idents(object) <- "cell_type"
  back <- echo(object)
  expect_identical(unname(back$ident), rep("mine", 300))
  expect_identical(SeuratObject::Idents(back), SeuratObject::Idents(object))
  expect_identical(scdiff_preprocess(object, n_top_genes = 50, hvg_flavor = "cv")$day, object$day)
  missing <- blood
  missing$obs$cell_type[3] <- NA
  missing$obs$cell_type <- addNA(missing$obs$cell_type)
  expect_refused(scdiff_train(missing, label = "cell_type"), "no value for 1 of 300", class = "scdiffkit_data_error")
  names(obs)[3] <- "ident"
  expect_refused(scdiff_write(list(counts = blood$counts, obs = obs), tempfile(fileext = ".h5ad")), "two columns named 'ident'")
  unnamed <- blood$counts
  rownames(unnamed)[2] <- NA
  expect_refused(scdiff_train(unnamed), "may be missing")
})

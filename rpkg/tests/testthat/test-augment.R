test_that("rare types are filled up to the target", {
  skip_if_no_python()
  more <- scdiff_augment(blood, "cell_type", c("CD8 T" = 30, CD14 = 10), run = trained())
  expect_identical(sum(more$obs$synthetic), 6L)
  expect_identical(sum(more$obs$cell_type == "CD8 T"), 30L)
  expect_identical(more$counts[, !more$obs$synthetic], blood$counts)
  expect_identical(levels(more$obs$cell_type), levels(blood$obs$cell_type))
  expect_false(anyDuplicated(colnames(more$counts)) > 0)
  expect_identical(rownames(more$obs), colnames(more$counts))
})

test_that("a Seurat object comes back with more cells", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  counts <- blood$counts
  rownames(counts)[1] <- "A-B"
  counts[2, ] <- 0 # a gene that the model leaves out
  object <- SeuratObject::CreateSeuratObject(counts, meta.data = cbind(blood$obs, batch = 1:300))
  SeuratObject::Idents(object) <- "cell_type"
  more <- scdiff_augment(object, "cell_type", c("CD8 T" = 30), max_steps = 3, out = tempfile())
  expect_s4_class(more, "Seurat")
  expect_equal(ncol(more), 306)
  expect_identical(rownames(more), rownames(object))
  expect_identical(layer_of(more[["RNA"]], "counts")[, 1:300], layer_of(object[["RNA"]], "counts"))
  expect_identical(as.character(SeuratObject::Idents(more))[1:300], as.character(SeuratObject::Idents(object)))
  expect_identical(is.na(more$batch), setNames(more$synthetic, colnames(more)))
  expect_identical(as.character(more$cell_type[more$synthetic]), rep("CD8 T", 6))
  expect_true(file.exists(slot(more, "misc")$scdiffkit$run))
})

test_that("a SingleCellExperiment comes back with more cells", {
  skip_if_no_python()
  skip_if_not_installed("SingleCellExperiment")
  object <- SingleCellExperiment::SingleCellExperiment(list(counts = blood$counts), colData = S4Vectors::DataFrame(blood$obs))
  more <- scdiff_augment(object, "cell_type", c("CD8 T" = 30), run = trained())
  expect_s4_class(more, "SingleCellExperiment")
  expect_equal(ncol(more), 306)
  expect_identical(sum(more$synthetic), 6L)
})

test_that("targets that make no sense are refused", {
  skip_if_no_python()
  expect_refused(scdiff_augment(blood, "cell_type", c(CD18 = 9)), "no cell has the cell_type 'CD18'; did you mean")
  expect_refused(scdiff_augment(blood, "cell_type", c(CD14 = 9)), "as many cells already \\(CD14 56\\)")
  expect_refused(scdiff_augment(blood, "cell_type", 9), "named by type")
  expect_refused(scdiff_augment(blood, "type", c(CD14 = 90)), "no column 'type'")
})

test_that("a run of other genes is refused", {
  skip_if_no_python()
  fewer <- list(counts = blood$counts[1:400, ], obs = blood$obs)
  expect_refused(scdiff_augment(fewer, "cell_type", c("CD8 T" = 60), run = trained()), "lacks 100 of them")
})

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
  expect_identical(unname(more$nCount_RNA), unname(Matrix::colSums(layer_of(more[["RNA"]], "counts"))))
  expect_identical(as.character(SeuratObject::Idents(more))[301:306], rep("CD8 T", 6))
  expect_identical(unique(as.character(more$orig.ident)), unique(as.character(object$orig.ident)))
  SeuratObject::Idents(object) <- rep(c("a", "b"), 150) # which do not follow from the label
  more <- scdiff_augment(object, "cell_type", c("CD8 T" = 30), run = slot(more, "misc")$scdiffkit$run)
  expect_identical(as.character(SeuratObject::Idents(more)), c(rep(c("a", "b"), 150), rep("CD8 T", 6)))
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
  expect_refused(scdiff_augment(blood, "cell_type", c(CD14 = 9)), "already as many cells \\(CD14 56\\)")
  expect_refused(scdiff_augment(blood, "cell_type", 9), "types as names")
  expect_refused(scdiff_augment(blood, "type", c(CD14 = 90)), "no column 'type'")
})

test_that("a run of other genes is refused", {
  skip_if_no_python()
  fewer <- list(counts = blood$counts[1:400, ], obs = blood$obs)
  expect_refused(scdiff_augment(fewer, "cell_type", c("CD8 T" = 60), run = trained()), "lacks 100 of them")
})

test_that("cells that an earlier call added stay marked, and are not learnt from", {
  skip_if_no_python()
  once <- scdiff_augment(blood, "cell_type", c("CD8 T" = 30), run = trained())
  twice <- scdiff_augment(once, "cell_type", c(CD19 = 70), max_steps = 2, out = folder <- tempfile("run-"))
  expect_identical(table(twice$obs$synthetic)[["TRUE"]], 6L + 70L - sum(blood$obs$cell_type == "CD19"))
  expect_false(any(twice$obs$synthetic[1:300]))
  expect_match(readLines(file.path(folder, "train.log")), "270 training cells, 30 validation cells", all = FALSE)
  own <- blood
  own$obs$synthetic <- "mine"
  expect_refused(scdiff_augment(own, "cell_type", c("CD8 T" = 30), run = trained()), "column 'synthetic' that is not logical")
})

test_that("labels that are TRUE or FALSE, or dates, do", {
  skip_if_no_python()
  more <- blood
  more$obs$rare <- more$obs$cell_type == "CD8 T"
  more$obs$day <- as.Date("2020-01-01") + as.integer(more$obs$cell_type)
  run <- scdiff_train(more, label = "rare", condition = "day", max_steps = 2, out = tempfile())
  cells <- scdiff_sample(run, n = 5, where = list(rare = TRUE, day = as.Date("2020-01-05")), ddim = 1)
  expect_identical(as.character(cells$obs$rare), rep("TRUE", 5))
  expect_identical(ncol(scdiff_sample(run, like = more, ddim = 1)$counts), 300L)
  after <- scdiff_augment(more, "rare", c("TRUE" = 30), run = run, sample = list(ddim = 1))$obs
  expect_type(after$rare, "logical")
  expect_identical(sum(after$rare), 30L)
  expect_s3_class(after$day, "Date")
  expect_false(anyNA(after$day))
})

test_that("what is for training is not taken silently with a run", {
  skip_if_no_python()
  expect_refused(scdiff_augment(blood, "cell_type", c("CD8 T" = 30), run = trained(), max_steps = 5), "`max_steps` is an option of training")
  expect_refused(scdiff_augment(blood, "cell_type", c("CD8 T" = 30, "CD8 T" = 40), run = trained()), "each type once")
})

test_that("a run is a path that survives saving, and tells of itself", {
  skip_if_no_python()
  run <- trained()
  saveRDS(run, file <- tempfile())
  expect_identical(readRDS(file), run)
  expect_output(print(run), run$path, fixed = TRUE)
  expect_identical(summary(run)$genes, 500L)
  grDevices::pdf(NULL)
  losses <- plot(run)
  grDevices::dev.off()
  expect_gt(nrow(losses), 0)
  expect_true(all(diff(losses$step) >= 0))
})

test_that("cells come as what was trained on", {
  skip_if_no_python()
  cells <- scdiff_sample(trained(), n = 30, where = list(cell_type = c("CD14", "CD19")), ddim = 2)
  expect_identical(dim(cells$counts), c(500L, 30L))
  expect_identical(rownames(cells$counts), rownames(blood$counts))
  expect_identical(levels(cells$obs$cell_type), intersect(levels(blood$obs$cell_type), c("CD14", "CD19")))
  expect_setequal(as.character(cells$obs$cell_type), c("CD14", "CD19"))
  expect_true(all(cells$counts@x == round(cells$counts@x) & cells$counts@x > 0))
  expect_identical(unname(Matrix::colSums(cells$counts)), cells$obs$total_counts)
  again <- scdiff_sample(trained(), n = 30, where = list(cell_type = c("CD14", "CD19")), ddim = 2)
  expect_identical(again, cells)
  long <- scdiff_sample(trained(), n = 30, where = list(cell_type = c("CD14", "CD19")), sampler = "ddim", steps = 2)
  expect_identical(long, cells)
  second_order <- scdiff_sample(trained(), n = 30, where = list(cell_type = c("CD14", "CD19")), sampler = "dpm", steps = 2)
  expect_false(identical(second_order, cells))
})

test_that("a Seurat object in gives a Seurat object out", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  object <- SeuratObject::CreateSeuratObject(blood$counts, meta.data = blood$obs)
  run <- scdiff_train(object, label = "cell_type", max_steps = 3, out = tempfile())
  cells <- scdiff_sample(run, n = 20, ddim = 2)
  expect_s4_class(cells, "Seurat")
  expect_identical(rownames(cells), rownames(object))
  expect_identical(as.character(SeuratObject::Idents(cells)), as.character(cells$cell_type))
  sce <- scdiff_sample(run, n = 20, ddim = 2, as = "SingleCellExperiment")
  expect_s4_class(sce, "SingleCellExperiment")
  expect_identical(SummarizedExperiment::assay(sce, "counts"), layer_of(cells[["RNA"]], "counts"))
  file <- scdiff_sample(run, n = 20, ddim = 2, output = tempfile(fileext = ".h5ad"))
  expect_identical(scdiff_read(file)$counts, layer_of(cells[["RNA"]], "counts"))
})

test_that("the same data give the same model as on the command line", {
  skip_if_no_python()
  file <- tempfile(fileext = ".h5ad")
  scdiff_write(blood, file)
  folder <- tempfile("run-")
  code <- "import sys; from scdiffkit.cli import main; main()"
  status <- withr::with_dir(tempdir(), system2(
    reticulate::py_config()$python,
    c("-c", shQuote(code), "train", file, "--label", "cell_type", "--max-steps", "20", "--out", folder),
    stdout = FALSE, stderr = FALSE
  ))
  expect_identical(status, 0L)
  weights <- c("codec.safetensors", "checkpoints/step-0000020/ema.safetensors")
  hashes <- function(folder) unname(tools::md5sum(file.path(folder, weights)))
  expect_false(anyNA(hashes(folder)))
  expect_identical(hashes(trained()$path), hashes(folder))
})

test_that("training is taken up again", {
  skip_if_no_python()
  run <- scdiff_train(blood, label = "cell_type", max_steps = 4, out = tempfile())
  expect_error(scdiff_train(blood, label = "cell_type", max_steps = 4, out = run$path), class = "scdiffkit_file_error")
  scdiff_train(blood, label = "cell_type", max_steps = 8, out = run$path, resume = TRUE)
  expect_identical(max(summary(run)$checkpoints), 8L)
})

test_that("a run that was trained on a file is resumed without it, and listed", {
  skip_if_no_python()
  folder <- tempfile()
  file <- scdiff_write(blood, tempfile(fileext = ".h5ad"))
  run <- scdiff_train(file, label = "cell_type", max_steps = 4, out = file.path(folder, "run"))
  scdiff_train(max_steps = 8, out = run$path, resume = TRUE)
  runs <- scdiff_runs(folder)
  expect_identical(runs[["run"]], "run")
  expect_identical(runs$steps, 8L)
  expect_identical(runs$state, "complete")
  expect_identical(scdiff_info(folder)$runs[[1]]$run, "run")
  expect_error(scdiff_train(label = "cell_type"), "`data` must be a Seurat object")
  expect_error(scdiff_runs(tempfile()), "no folder", class = "scdiffkit_file_error")
  expect_warning(
    scdiff_train(backed = FALSE, max_steps = 8, out = run$path, resume = TRUE), "`backed` is now `memory = \"ram\"`", fixed = TRUE
  )
})

test_that("R's interrupt stops training and leaves a run to be taken up", {
  skip_if_no_python()
  skip_on_os("windows")
  folder <- tempfile("interrupt-")
  dir.create(folder)
  script <- file.path(folder, "train.R")
  writeLines(c(
    "library(scdiffkit)",
    sprintf("writeLines(as.character(Sys.getpid()), '%s/pid')", folder),
    sprintf("scdiff_train(blood, label = 'cell_type', max_steps = 1e5, out = '%s/run')", folder),
    sprintf("writeLines('ended', '%s/ended')", folder)
  ), script)
  log <- file.path(folder, "log")
  environment <- c(paste0("RETICULATE_PYTHON=", reticulate::py_config()$python), paste0("R_LIBS=", paste(.libPaths(), collapse = ":")))
  system2(file.path(R.home("bin"), "Rscript"), script, stdout = log, stderr = log, wait = FALSE, env = environment)
  waits_for <- function(condition, seconds = 120) {
    ended <- Sys.time() + seconds
    while (!condition() && Sys.time() < ended) Sys.sleep(0.2)
    expect_true(condition(), info = paste(readLines(log), collapse = "\n"))
  }
  waits_for(function() file.exists(file.path(folder, "run", "metrics.jsonl")))
  pid <- as.integer(readLines(file.path(folder, "pid")))
  tools::pskill(pid, tools::SIGINT)
  waits_for(function() !tools::pskill(pid, 0))
  expect_false(file.exists(file.path(folder, "ended")))
  expect_false(any(grepl("Traceback", readLines(log))))
  expect_match(readLines(log), "scdiff_train\\(data, label = ..., resume = TRUE, out = ", all = FALSE)
  expect_type(scdiff_sample(file.path(folder, "run"), n = 3, ddim = 1), "list") # the kind it was trained on
  steps <- summary(scdiff_run(file.path(folder, "run")))$checkpoints
  expect_gt(max(steps), 0)
  scdiff_train(
    blood,
    label = "cell_type", max_steps = max(steps) + 2L, out = file.path(folder, "run"), resume = TRUE
  )
  expect_identical(max(summary(scdiff_run(file.path(folder, "run")))$checkpoints), max(steps) + 2L)
})

test_that("the latest run is found, and paths stay right in another folder", {
  skip_if_no_python()
  folder <- tempfile("work-")
  dir.create(folder)
  withr::local_dir(folder)
  made <- scdiff_train(blood, label = "cell_type", max_steps = 2)
  expect_identical(scdiff_run(), made)
  expect_identical(ncol(scdiff_sample(n = 4, ddim = 1)$counts), 4L)
  later <- scdiff_run("later/run")
  expect_true(startsWith(later$path, normalizePath(folder)))
})

test_that("an interrupt at any moment is R's interrupt", {
  skip_if_no_python()
  skip_on_os("windows")
  run <- trained()
  shell <- sprintf("kill -INT %d", Sys.getpid())
  for (seconds in c(0.01, 0.1, 0.3, 0.5, 0.8, 1.2)) {
    system(sprintf("(sleep %.2f; %s) &", seconds, shell))
    got <- tryCatch(
      {
        scdiff_sample(run, n = 20000, ddim = 20)
        Sys.sleep(2)
        "ended"
      },
      interrupt = function(e) "interrupt", error = conditionMessage
    )
    expect_identical(got, "interrupt")
  }
  expect_identical(ncol(scdiff_sample(run, n = 2, ddim = 1)$counts), 2L)
})

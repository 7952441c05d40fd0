test_that("arguments are checked by name", {
  skip_if_no_python()
  expect_refused(scdiff_train(blood, label = "cel_type"), "`data` has no column 'cel_type' of its cells; did you mean 'cell_type'")
  expect_refused(scdiff_train(blood, label = "cell_type", max_steps = 1.5), "`max_steps` must be one whole number")
  expect_refused(scdiff_train(blood, arch = "dot"), "dit", class = "scdiffkit_config_error")
  expect_refused(scdiff_train(blood, set = list(model.nothing = 1)), "nothing", class = "scdiffkit_config_error")
  expect_refused(scdiff_train(blood$counts, obs = blood$obs[1:3, , drop = FALSE]), "3 rows and `data` 300 cells")
  expect_refused(scdiff_train(blood$counts, obs = blood$obs$cell_type), "`obs` must be a data frame")
  expect_refused(scdiff_train(1:3), "`data` must be a Seurat object")
  expect_refused(scdiff_sample(trained(), n = 2, as = "matrix"), "`as` must be one of")
  expect_refused(scdiff_sample(trained(), n = 2, where = "B"), "named list")
  expect_refused(scdiff_sample(trained(), n = 2, where = list(cell_type = "CD15")), "never seen cell_type='CD15'")
  expect_refused(scdiff_sample(blood, n = 2), "`run` must be what scdiff_train\\(\\) returned")
  expect_refused(scdiff_sample(trained(), n = 0), "")
  expect_refused(scdiff_sample(trained(), n = 2, ddim = 5, ddpm = TRUE), "`ddim` or `ddpm`, not both", class = "scdiffkit_config_error")
  expect_refused(scdiff_sample(trained(), n = 2, ddim = 5, sampler = "dpm"), "`ddim` and `sampler` dpm contradict")
  expect_refused(scdiff_sample(trained(), n = 2, sampler = "dpm", eta = 1), "`eta` is read only by the sampler ddim")
})

test_that("cells that cannot be used are refused", {
  skip_if_no_python()
  none <- list(counts = blood$counts[, 0], obs = blood$obs[0, , drop = FALSE])
  expect_refused(scdiff_train(none), "`data` is empty \\(500 genes x 0 cells\\)")
  twice <- blood
  rownames(twice$counts)[2] <- rownames(twice$counts)[1]
  expect_refused(scdiff_train(twice), "1 gene names more than once.*make.unique")
  unnamed <- blood$counts
  rownames(unnamed) <- NULL
  expect_refused(scdiff_train(unnamed), "names as row names")
  expect_refused(scdiff_train(NULL), "`data` must be a Seurat object")
  lacking <- blood
  lacking$counts[3, 4] <- NA
  expect_refused(scdiff_train(lacking), "NaN.*`assay`", class = "scdiffkit_data_error")
  words <- as.matrix(blood$counts)
  storage.mode(words) <- "character"
  expect_refused(scdiff_train(words), "must hold numbers")
  logs <- blood
  logs$counts <- log1p(logs$counts)
  expect_refused(scdiff_train(logs, label = "cell_type"), "log-normalised", class = "scdiffkit_data_error")
  lacking <- blood
  lacking$obs$cell_type[3] <- NA
  expect_refused(
    scdiff_train(lacking, label = "cell_type"), "!is.na\\(object\\$cell_type\\)",
    class = "scdiffkit_data_error"
  )
})

test_that("unused levels do no harm", {
  skip_if_no_python()
  more <- blood
  levels(more$obs$cell_type) <- c(levels(more$obs$cell_type), "never")
  run <- scdiff_train(more, label = "cell_type", max_steps = 2, out = tempfile())
  expect_false("never" %in% as.character(scdiff_sample(run, n = 20, ddim = 1)$obs$cell_type))
})

test_that("a Seurat object without counts is told which layer was looked for", {
  skip_if_no_python()
  skip_if_not_installed("SeuratObject")
  object <- SeuratObject::CreateSeuratObject(blood$counts)
  expect_refused(scdiff_train(object, assay = "RMA"), "no assay 'RMA' \\(`assay`\\); did you mean 'RNA'")
  if (inherits(object[["RNA"]], "Assay")) {
    object[["RNA"]] <- SeuratObject::CreateAssayObject(data = as.matrix(log1p(blood$counts)))
  } else {
    object[["RNA"]] <- SeuratObject::CreateAssay5Object(data = log1p(blood$counts))
  }
  expect_refused(scdiff_train(object), "no raw counts \\(layer 'counts'\\)")
})

test_that("a run that was deleted is told of", {
  skip_if_no_python()
  run <- scdiff_run(tempfile())
  expect_output(print(run), "not there")
  expect_refused(scdiff_sample(run, n = 2), "moved or deleted", class = "scdiffkit_run_error")
})

test_that("Python's traceback is there for who asks", {
  skip_if_no_python()
  error <- expect_error(scdiff_read(tempfile(fileext = ".h5ad")), class = "scdiffkit_error")
  expect_false(grepl("Traceback", conditionMessage(error)))
  expect_match(error$traceback, "Traceback")
  withr::local_options(scdiffkit.traceback = TRUE)
  expect_error(scdiff_read(tempfile(fileext = ".h5ad")), "Traceback")
})

test_that("Python's warnings are R's", {
  skip_if_no_python()
  expect_warning(
    scdiff_evaluate(
      list(counts = blood$counts[, 1:20], obs = blood$obs[1:20, , drop = FALSE]),
      list(counts = blood$counts[, 101:200], obs = blood$obs[101:200, , drop = FALSE]),
      fast = TRUE
    ),
    "Only 10 cells per set"
  )
})

test_that("no Python, or one that lacks what is needed, is told with its remedy", {
  bare <- tempfile("bare-")
  python <- newest_python()
  skip_if(is.null(python), "Python 3.11")
  system2(python, c("-m", "venv", "--without-pip", bare))
  said <- function(python) {
    script <- "cat(scdiffkit::scdiff_status(quiet = TRUE)$missing)"
    withr::with_envvar(
      c(RETICULATE_PYTHON = python, R_LIBS = paste(.libPaths(), collapse = ":"), PYTHONPATH = "", WORKON_HOME = tempdir()),
      paste(suppressWarnings(system2(file.path(R.home("bin"), "Rscript"), c("-e", shQuote(script)), stdout = TRUE, stderr = FALSE)), collapse = " ")
    )
  }
  expect_match(said(file.path(bare, "bin", "python")), "lacks scdiffkit.*pip install scdiffkit")
  expect_match(said(file.path(bare, "no", "python")), "scdiff_install\\(\\)")
})

test_that("an installation that fails leaves nothing that looks ready", {
  skip_if(is.null(newest_python()), "Python 3.11")
  root <- tempfile("environments-")
  withr::local_envvar(WORKON_HOME = root, RETICULATE_PYTHON = NA)
  expect_refused(
    suppressMessages(scdiff_install(source = file.path(root, "nothing"))), "The installation failed",
    class = "scdiffkit_python_error"
  )
  expect_null(environment_python())
})

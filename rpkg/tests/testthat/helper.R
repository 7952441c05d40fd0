# Where SCDIFF_R_TESTS is set, nothing may be skipped for want of Python; where it is 1, nor for want of Seurat.
skip_if_no_python <- function() {
  found <- scdiff_status(quiet = TRUE)
  if (!found$ready && nzchar(Sys.getenv("SCDIFF_R_TESTS"))) {
    stop("SCDIFF_R_TESTS is set and Python is not ready: ", found$missing)
  }
  skip_if_not(found$ready, "Python with scdiffkit")
}

skip_if_no_seurat <- function() {
  skip_if_no_python()
  there <- nzchar(system.file(package = "Seurat")) # which does not load it
  if (!there && Sys.getenv("SCDIFF_R_TESTS") == "1") {
    stop("SCDIFF_R_TESTS is 1 and Seurat is not installed.")
  }
  skip_if_not(there, "Seurat")
}

options(scdiffkit.quiet = TRUE)

loadNamespace("Matrix")
blood$counts <- as_sparse(blood$counts) # as it comes back

echo <- function(x, ...) unpack_cells(call_python("echo", data = pack_cells(x, "x", ...)), kind_of(x), active_assay(x))

# A short training on the bundled cells, once for all tests.
trained <- function() {
  if (is.null(state$trained)) {
    state$trained <- scdiff_train(blood, label = "cell_type", max_steps = 20, out = tempfile("run-"))
  }
  state$trained
}

# Expects an error that the package signals.
expect_refused <- function(object, regexp, class = "scdiffkit_error") {
  error <- expect_error(object, regexp, class = class)
  expect_false(grepl("Traceback", conditionMessage(error)))
  invisible(error)
}

#' scdiffkit: generate realistic single-cell RNA-seq cells from your own data
#'
#' Train on a Seurat object, a SingleCellExperiment, a sparse matrix or a file
#' ([scdiff_train()]), draw new labelled cells of the same kind
#' ([scdiff_sample()]), and evaluate whether they can be trusted
#' ([scdiff_evaluate()]), or add cells to rare types in one call
#' ([scdiff_augment()]). [scdiff_install()] installs the Python package once, and
#' [scdiff_status()] shows what is installed.
#'
#' @keywords internal
#' @importFrom methods as is new slot slot<- slotNames
"_PACKAGE"

# What was loaded, for as long as R runs.
state <- new.env(parent = emptyenv())

`%||%` <- function(a, b) if (is.null(a)) b else a

.onLoad <- function(libname, pkgname) {
  # Neither is loaded here: reticulate brings Matrix, which takes a second.
  when_loaded("reticulate", require_python)
  when_loaded("ggplot2", function(...) {
    registerS3method("autoplot", "scdiff_evaluation", autoplot.scdiff_evaluation, envir = asNamespace("ggplot2"))
  })
}

when_loaded <- function(package, does) {
  if (isNamespaceLoaded(package)) {
    does()
  }
  setHook(packageEvent(package, "onLoad"), does)
}

# Newer reticulate makes an environment of its own for what packages ask for,
# unless the user has chosen one.
require_python <- function(...) {
  if (utils::packageVersion("reticulate") >= "1.41" && !nzchar(Sys.getenv("RETICULATE_PYTHON")) &&
    is.null(environment_python())) {
    get("py_require", asNamespace("reticulate"))("scdiffkit", python_version = ">=3.11")
  }
}

#' scdiffkit: generate realistic single-cell RNA-seq cells from your own data
#'
#' Train on a Seurat object, a SingleCellExperiment, a sparse matrix or a file
#' ([scdiff_train()]), draw new labelled cells of the same kind
#' ([scdiff_sample()]), and ask whether they can be trusted
#' ([scdiff_evaluate()]); or add cells to rare types in one call
#' ([scdiff_augment()]). [scdiff_install()] prepares Python once,
#' [scdiff_status()] tells what is there.
#'
#' @keywords internal
#' @importFrom methods as is new slot slot<- slotNames
#' @importFrom Matrix sparseMatrix
"_PACKAGE"

# What was loaded, for as long as R runs.
state <- new.env(parent = emptyenv())

`%||%` <- function(a, b) if (is.null(a)) b else a

.onLoad <- function(libname, pkgname) {
  # Newer reticulate makes an environment of its own for what packages ask for,
  # unless the user has chosen one.
  if (utils::packageVersion("reticulate") >= "1.41" && !nzchar(Sys.getenv("RETICULATE_PYTHON")) &&
      is.null(environment_python())) {
    get("py_require", asNamespace("reticulate"))("scdiffkit", python_version = ">=3.11")
  }
  for (generic in c("autoplot")) {
    register_s3(generic, "ggplot2", "scdiff_evaluation")
  }
}

# A method for a generic of a package that may not be there.
register_s3 <- function(generic, package, class) {
  method <- get(paste(generic, class, sep = "."), envir = asNamespace("scdiffkit"))
  register <- function(...) registerS3method(generic, class, method, envir = asNamespace(package))
  if (isNamespaceLoaded(package)) {
    register()
  }
  setHook(packageEvent(package, "onLoad"), register)
}

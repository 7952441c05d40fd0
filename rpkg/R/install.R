#' Install what scdiffkit needs in Python
#'
#' Creates a Python environment called `r-scdiffkit` and installs the Python package
#' into it; [scdiff_train()] and the other functions find it there. If
#' `RETICULATE_PYTHON` names a Python, that Python is used instead, and this
#' function is not needed.
#'
#' @param source The package that pip installs: its name, or the folder or URL of its
#'   source.
#' @param python The Python (3.11 or newer) that the environment is created with;
#'   by default the newest that is found.
#' @param force Replace the environment.
#' @return The path of the environment's Python, invisibly.
#' @examples
#' \dontrun{
#' scdiff_install()
#' }
#' @export
scdiff_install <- function(source = "scdiffkit", python = NULL, force = FALSE) {
  if (nzchar(Sys.getenv("RETICULATE_PYTHON"))) {
    warning(
      "RETICULATE_PYTHON is set (", Sys.getenv("RETICULATE_PYTHON"), "), so R will use that Python: unset it to use the environment that is installed here.",
      call. = FALSE
    )
  }
  if (!is.null(environment_python()) && !flag(force, "force")) {
    message("The environment already exists: ", environment_python(), ". scdiff_install(force = TRUE) replaces it.")
    return(invisible(environment_python()))
  }
  python <- python %||% newest_python()
  if (is.null(python)) {
    fail(paste(
      "No Python 3.11 or newer was found. Install one, for instance with reticulate::install_python(\"3.11\"),",
      "and run scdiff_install(python = \"its path\")."
    ), "python")
  }
  root <- path.expand(file.path(Sys.getenv("WORKON_HOME", "~/.virtualenvs"), ENVIRONMENT))
  if (dir.exists(root)) {
    unlink(root, recursive = TRUE)
  }
  run_or_fail(python, c("-m", "venv", shQuote(root)), "The environment could not be created")
  made <- environment_python()
  tryCatch(
    run_or_fail(made, c("-m", "pip", "install", shQuote(source)), "The installation failed"),
    error = function(e) {
      unlink(root, recursive = TRUE) # else it would be taken for one that is ready
      stop(e)
    }
  )
  message("Installed. Restart R if Python was used in this session.")
  invisible(made)
}

run_or_fail <- function(command, arguments, what) {
  status <- outside_r(system2(command, arguments))
  if (status != 0) {
    fail(sprintf("%s: %s %s ended with status %d; the lines above show why.", what, command, paste(arguments, collapse = " "), status), "python")
  }
}

# R lets what it starts find its own libraries first, with which another Python's ssl may not load.
outside_r <- function(expr) {
  before <- Sys.getenv("LD_LIBRARY_PATH")
  script <- file.path(R.home("etc"), "ldpaths")
  if (nzchar(before) && file.exists(script)) {
    says <- sprintf(". %s; echo $LD_LIBRARY_PATH", shQuote(script))
    of_r <- system2("env", c("-u", "LD_LIBRARY_PATH", "sh", "-c", shQuote(says)), stdout = TRUE)
    if (startsWith(before, of_r)) {
      on.exit(Sys.setenv(LD_LIBRARY_PATH = before))
      Sys.setenv(LD_LIBRARY_PATH = sub("^:", "", substring(before, nchar(of_r) + 1)))
    }
  }
  expr
}

newest_python <- function() {
  found <- Sys.which(c("python3.13", "python3.12", "python3.11", "python3", "python"))
  for (python in found[nzchar(found)]) {
    code <- "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    status <- suppressWarnings(outside_r(system2(python, c("-c", shQuote(code)), stdout = FALSE, stderr = FALSE)))
    if (status == 0) {
      return(unname(python))
    }
  }
  NULL
}

#' Show which Python and versions are used, and what is missing
#'
#' @param quiet Do not print.
#' @return A list, invisibly: `ready`, `python` (version and path), versions, `gpu`,
#'   and `missing`, with the command that installs it.
#' @examples
#' scdiff_status()
#' @export
scdiff_status <- function(quiet = FALSE) {
  found <- tryCatch(
    {
      half <- python_half() # first, for reticulate would start Python by itself
      c(list(ready = TRUE), reticulate::py_to_r(half$status()))
    },
    scdiffkit_error = function(e) list(ready = FALSE, missing = conditionMessage(e))
  )
  if (!is.null(found$torch_error)) {
    found$ready <- FALSE
    found$missing <- paste("torch cannot be loaded:", found$torch_error, "Run scdiff_install(force = TRUE).")
  }
  found$r_package <- as.character(utils::packageVersion("scdiffkit"))
  if (!flag(quiet, "quiet")) {
    cat("scdiffkit", found$r_package, "for R\n")
    if (!is.null(found$executable)) {
      cat("Python    ", found$python, " (", found$executable, ")\n", sep = "")
      for (name in intersect(c("scdiffkit", "torch", "anndata", "numpy"), names(found))) {
        cat(sprintf("%-10s%s\n", name, found[[name]]))
      }
      cat("GPU       ", found$gpu %||% "none that torch can use", "\n", sep = "")
    }
    cat(if (found$ready) "Ready." else paste0("Not ready. ", found$missing), "\n", sep = "")
  }
  invisible(found)
}

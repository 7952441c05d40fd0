# Calls into Python: found and loaded on first use; errors, warnings and progress
# come back as R's own.

ENVIRONMENT <- "r-scdiffkit"

# The Python of the environment that scdiff_install() makes, NULL if there is none.
environment_python <- function() {
  root <- Sys.getenv("WORKON_HOME", "~/.virtualenvs")
  bin <- if (.Platform$OS.type == "windows") "Scripts/python.exe" else "bin/python"
  python <- file.path(path.expand(root), ENVIRONMENT, bin)
  if (file.exists(python)) python else NULL
}

python_half <- function() {
  if (is.null(state$half)) {
    suspendInterrupts(load_half()) # a module half loaded cannot be loaded again
  }
  state$half
}

load_half <- function() {
  if (!reticulate::py_available() && !nzchar(Sys.getenv("RETICULATE_PYTHON")) && !is.null(environment_python())) {
    reticulate::use_python(environment_python(), required = TRUE)
  }
  started <- tryCatch(suppressWarnings(reticulate::py_available(initialize = TRUE)), error = conditionMessage)
  if (!isTRUE(started)) {
    why <- if (is.character(started)) {
      paste0(" (", trimws(started), ")")
    } else {
      ""
    }
    fail(sprintf("There is no Python that R can use%s. %s", why, remedy()), "python")
  }
  version <- reticulate::py_config()$version
  if (utils::compareVersion(as.character(version), "3.11") < 0) {
    fail(sprintf(
      "R uses Python %s (%s), but scdiffkit needs 3.11 or newer. %s",
      version, reticulate::py_config()$python, remedy()
    ), "python")
  }
  find <- reticulate::import("importlib.util", convert = FALSE)$find_spec # without loading it: that is done there
  for (module in c("scdiffkit", "torch")) {
    if (is.null(reticulate::py_to_r(find(module)))) {
      fail(sprintf(
        "The Python that R uses (%s) lacks %s. %s Or install it into that Python: %s -m pip install %s",
        reticulate::py_config()$python, module, remedy(), reticulate::py_config()$python, module
      ), "python")
    }
  }
  folder <- system.file("python", package = "scdiffkit")
  state$half <- reticulate::import_from_path("scdiffkit_r", path = folder, convert = FALSE)
  # converted at once, so that Python's copy of the bytes goes at once
  state$take <- reticulate::import_from_path("scdiffkit_r", path = folder, convert = TRUE)$take
}

# What mends a Python that does not serve.
remedy <- function() {
  named <- Sys.getenv("RETICULATE_PYTHON")
  if (nzchar(named)) {
    sprintf(
      "RETICULATE_PYTHON names this Python (%s): unset the variable (Sys.unsetenv(\"RETICULATE_PYTHON\"), and in the file that sets it, such as .Renviron), restart R and run scdiff_install().",
      named
    )
  } else {
    "Restart R and run scdiff_install(), which installs what is needed."
  }
}

# One verb of the Python half; its value. What went wrong there is signalled here.
call_python <- function(verb, ...) {
  half <- python_half()
  show <- teller()
  on.exit(show("", FALSE, TRUE))
  # An interrupt must not unwind through Python: it is let in here alone, and Python told of it.
  tell <- function(line, passing) {
    tryCatch(
      allowInterrupts({
        show(line, passing)
        Sys.sleep(0) # R looks for an interrupt
        FALSE
      }),
      interrupt = function(e) TRUE
    )
  }
  every <- if (interactive()) 0.5 else 10
  arguments <- reticulate::r_to_py(list(...))
  answer <- suspendInterrupts(reticulate::py_to_r(half$call(
    verb, arguments, reticulate::r_to_py(tell, convert = TRUE), every
  )))
  for (text in unlist(answer$warnings)) {
    warning(text, call. = FALSE)
  }
  if (is.null(answer$error)) {
    return(answer$value)
  }
  if (answer$kind == "interrupt") {
    interrupt()
  }
  fail(answer$error, answer$kind, answer$traceback)
}

# Lines that pass are written over one another at a console, and plain elsewhere.
teller <- function() {
  width <- 0
  function(line, passing, done = FALSE) {
    quiet <- isTRUE(getOption("scdiffkit.quiet"))
    if (quiet || (!nzchar(line) && !(done && width > 0))) {
      return(invisible())
    }
    if (width > 0) {
      cat("\r", strrep(" ", width), "\r", sep = "", file = stderr())
      width <<- 0
    }
    if (passing && interactive()) {
      line <- substr(line, 1, max(20, getOption("width") - 1))
      cat(line, file = stderr())
      utils::flush.console()
      width <<- nchar(line)
    } else if (nzchar(line)) {
      message(line)
    }
    invisible()
  }
}

fail <- function(text, kind = "argument", traceback = NULL) {
  if (!is.null(traceback) && isTRUE(getOption("scdiffkit.traceback"))) {
    text <- paste(text, traceback, sep = "\n\n")
  }
  stop(structure(
    class = c(paste0("scdiffkit_", tolower(sub("Error$", "", kind)), "_error"), "scdiffkit_error", "error", "condition"),
    list(message = text, call = NULL, kind = kind, traceback = traceback)
  ))
}

interrupt <- function() {
  signalCondition(structure(class = c("interrupt", "condition"), list(message = "interrupted", call = NULL)))
  invokeRestart("abort")
}

# Arguments

# A whole number as an integer, for Python tells 5 from 5.0.
whole <- function(x, name) {
  if (is.null(x)) {
    return(NULL)
  }
  if (!is.numeric(x) || length(x) != 1 || is.na(x) || x != round(x)) {
    fail(sprintf("`%s` must be one whole number.", name))
  }
  if (abs(x) > .Machine$integer.max) {
    fail(sprintf("`%s` must be below 2^31.", name))
  }
  as.integer(x)
}

text <- function(x, name, several = FALSE) {
  if (is.null(x)) {
    return(NULL)
  }
  if (!is.character(x) || anyNA(x) || (!several && length(x) != 1)) {
    fail(sprintf("`%s` must be %s.", name, if (several) "character" else "one string"))
  }
  if (several) as.list(x) else x
}

path_of <- function(x, name) if (is.null(x)) NULL else path.expand(text(x, name))

# The same place after setwd(), also where there is nothing yet.
absolute <- function(path) {
  path <- path.expand(path)
  normalizePath(if (grepl("^(/|\\\\|[A-Za-z]:)", path)) path else file.path(getwd(), path), mustWork = FALSE)
}

flag <- function(x, name) {
  if (!is.logical(x) || length(x) != 1 || is.na(x)) {
    fail(sprintf("`%s` must be TRUE or FALSE.", name))
  }
  x
}

# The names that are nearest to one that is not there.
nearest <- function(name, names) {
  if (!length(names)) {
    return("there are none.")
  }
  near <- names[order(utils::adist(name, names, ignore.case = TRUE))]
  sprintf("did you mean %s?", paste0("'", utils::head(near, 3), "'", collapse = ", "))
}

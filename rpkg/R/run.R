#' A trained run
#'
#' A run, as returned by [scdiff_train()], is only the path of its folder. It can be
#' saved with [saveRDS()] and used in another session as long as the folder exists.
#'
#' @param path The folder of a run; by default the latest one in `scdiff-runs/`.
#' @param x,object A run.
#' @param ... For `plot()`: passed on to [graphics::matplot()].
#' @return `scdiff_run()`: an object of class `scdiff_run`. `summary()`: the list
#'   that [scdiff_info()] returns. `plot()`: the losses as a data frame, invisibly.
#' @examples
#' run <- scdiff_run(tempdir())
#' run
#' @export
scdiff_run <- function(path = NULL) {
  path <- if (is.null(path)) call_python("latest") else path_of(path, "path")
  structure(list(path = absolute(path)), class = "scdiff_run")
}

#' @rdname scdiff_run
#' @export
print.scdiff_run <- function(x, ...) {
  there <- file.exists(file.path(x$path, "config.yaml"))
  cat("<scdiff_run> ", x$path, if (!there) " (not there)", "\n", sep = "")
  invisible(x)
}

#' @rdname scdiff_run
#' @export
summary.scdiff_run <- function(object, ...) scdiff_info(object)

#' @rdname scdiff_run
#' @export
plot.scdiff_run <- function(x, ...) {
  losses <- losses_of(x)
  columns <- intersect(c("loss", "val_loss"), names(losses))
  colours <- c(loss = "#0072B2", val_loss = "#E69F00")[columns]
  drawn <- utils::modifyList(list(
    losses$step, as.matrix(losses[columns]),
    type = "o", pch = 16, cex = 0.7, lty = seq_along(columns), col = colours, xlab = "step", ylab = "loss",
    main = basename(x$path)
  ), list(...))
  do.call(graphics::matplot, drawn)
  graphics::legend("topright", c(loss = "training", val_loss = "held out")[columns], col = colours, lty = seq_along(columns), pch = 16, bty = "n")
  invisible(losses)
}

losses_of <- function(run) {
  losses <- unpack_frame(call_python("metrics", path = existing(run)))
  losses[order(losses$step), , drop = FALSE]
}

#' The runs in a folder
#'
#' @param folder The folder that holds the runs.
#' @return A data frame with a row for each run, newest first: the progress of its
#'   training (`state`, `steps` of `planned`), its training data, the best held-out
#'   loss, and the verdict and random-forest AUC of the latest [scdiff_evaluate()]
#'   of the run.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' folder <- tempfile()
#' run <- scdiff_train(blood, label = "cell_type", max_steps = 20, out = file.path(folder, "run"))
#' scdiff_runs(folder)[, c("run", "state", "steps")]
#' @export
scdiff_runs <- function(folder = "scdiff-runs") {
  unpack_frame(call_python("runs", folder = path_of(folder, "folder")))
}

# The folder of a run that is there.
existing <- function(run) {
  if (!inherits(run, "scdiff_run") && !is.character(run)) {
    fail("`run` must be what scdiff_train() returned, or the folder of a run.")
  }
  path <- if (inherits(run, "scdiff_run")) run$path else path_of(run, "run")
  if (!file.exists(file.path(path, "config.yaml"))) {
    fail(sprintf("There is no run in %s: was the folder moved or deleted? scdiff_run(\"its new place\") opens it again.", path), "run")
  }
  path
}

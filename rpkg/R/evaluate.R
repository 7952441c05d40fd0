#' Can synthetic cells be trusted?
#'
#' Scores synthetic cells, compares the scores with those of real cells (the real
#' reference) and of bad models (the baselines), gives a verdict in words, and
#' writes a report.
#'
#' @param real,synthetic,train Cells of any kind that [scdiff_train()] takes, or
#'   paths. `train`: the training cells of the model, if `real` holds other cells.
#'   If the model was trained on `real`, the cells that it has not seen are compared
#'   (`scdiff_train(holdout = 0.2)`).
#' @param run Take real cells, training cells and label from this run, if it was
#'   trained on a file. Without `synthetic`, cells are drawn from it.
#' @param label,condition,donor,batch Columns of the cells: cell types, conditions in
#'   which cells of a type differ (such as a treatment), donors, batches.
#' @param protocol Add another paper's scores: `"scrdit"`, `"cfgen"`,
#'   `"scdiffusion"`, `"scldm"` or `"cell-eval"`.
#' @param output Folder of the report; a temporary one by default.
#' @param resamples,max_cells Number of resamples, and maximum number of cells per
#'   set in each.
#' @param fast Use one resample of at most 400 cells per set, which takes half a
#'   minute.
#' @param seed Random seed; the same seed gives the same scores.
#' @param force Replace the report in `output`.
#' @param assay The assay with the raw counts, of Seurat objects and
#'   SingleCellExperiments.
#' @param metrics Metrics to compute: their names, or `"full"` (all), `"fast"` (as
#'   with `fast`) or `"minimal"` (a few seconds).
#' @param x,object An evaluation.
#' @param ... Passed on to [graphics::plot()] if ggplot2 is not installed.
#' @return A data frame of class `scdiff_evaluation` with a row for each metric:
#'   `value` with its range over resamples, `real_reference` (score of real cells),
#'   `baseline` (score of the bad model that it is compared with), the scores of the
#'   bad models `shuffled`, `pooled` and `copies`, `position` (0 at real cells, 1 at
#'   the bad model), and the definition. It has the attributes `verdict` (word,
#'   grade, text and privacy), `uses`, `types` and `donors` (data frames), `cells`
#'   (positions of the cells in the picture) and `report` (path of the HTML file).
#'   `scdiff_report()` opens the report.
#' @examplesIf scdiff_status(quiet = TRUE)$ready
#' half <- seq_len(ncol(blood$counts)) %% 2 == 0
#' part <- function(keep) list(counts = blood$counts[, keep], obs = blood$obs[keep, , drop = FALSE])
#' found <- scdiff_evaluate(part(half), part(!half), label = "cell_type", fast = TRUE)
#' found
#' plot(found)
#' @export
scdiff_evaluate <- function(real = NULL, synthetic = NULL, train = NULL, label = NULL, condition = NULL, donor = NULL,
                            protocol = NULL, output = NULL, resamples = 5, fast = FALSE, max_cells = 1000, seed = 0,
                            force = FALSE, assay = NULL, run = NULL, metrics = "full", batch = NULL) {
  if (is.null(run) && (is.null(real) || is.null(synthetic))) fail("Give `real` and `synthetic` cells, or a `run`.")
  labels <- c(label, condition, donor, batch)
  check_columns(real, labels, name = "real", optional = TRUE)
  check_columns(train, labels, name = "train", optional = TRUE)
  options <- list(
    label = text(label, "label"), condition = text(condition, "condition", several = TRUE),
    donor = text(donor, "donor"), batch = text(batch, "batch"), protocol = text(protocol, "protocol"),
    metrics = text(metrics, "metrics", several = TRUE),
    out = absolute(text(output, "output") %||% tempfile("scdiff-report-")), resamples = whole(resamples, "resamples"),
    fast = flag(fast, "fast"), max_cells = whole(max_cells, "max_cells"), seed = whole(seed, "seed"), force = flag(force, "force"),
    run = if (!is.null(run)) existing(run)
  )
  found <- call_python("evaluate",
    real = pack_cells(real, "real", assay, optional = TRUE, labels = labels),
    synthetic = pack_cells(synthetic, "synthetic", own_assay(synthetic, assay), optional = TRUE, labels = labels),
    train = pack_cells(train, "train", assay, optional = TRUE, labels = labels), options = options
  )
  scores <- unpack_frame(found$scores)
  scores$baseline <- as.numeric(as.matrix(scores[BASELINES])[
    cbind(seq_len(nrow(scores)), match(scores$baseline_name, BASELINES))
  ])
  structure(
    scores,
    class = c("scdiff_evaluation", "data.frame"),
    verdict = found$verdict[c("word", "grade", "text", "privacy")], findings = unpack_strings(found$verdict$findings),
    uses = data.frame(use = unpack_strings(found$uses$use), grade = unpack_strings(found$uses$grade)),
    types = unpack_frame(found$types), donors = unpack_frame(found$donors), cells = unpack_frame(found$cells),
    notes = unpack_strings(found$notes), report = found$html
  )
}

# Generated cells have one assay, whatever it is called.
own_assay <- function(x, assay) {
  if (is.null(x)) return(NULL)
  there <- switch(kind_of(x), Seurat = names(slot(x, "assays")), SingleCellExperiment = SummarizedExperiment::assayNames(x))
  if (!is.null(assay) && assay %in% there) assay
}

BASELINES <- c("shuffled", "pooled", "copies")

#' @rdname scdiff_evaluate
#' @export
print.scdiff_evaluation <- function(x, ...) {
  shown <- as.data.frame(x)
  if (all(c("metric", "value", "real_reference", "baseline", "position", "headline") %in% names(shown))) {
    shown <- shown[shown$headline, c("metric", "value", "real_reference", "baseline", "position")]
    shown[-1] <- lapply(shown[-1], signif, 3)
  }
  print(shown, row.names = FALSE)
  if (!is.null(attr(x, "verdict"))) {
    cat("\n", paste(strwrap(attr(x, "verdict")$text), collapse = "\n"), "\n", sep = "")
    for (i in seq_len(nrow(attr(x, "uses")))) {
      cat(sprintf("  %-5s for %s\n", attr(x, "uses")$grade[i], attr(x, "uses")$use[i]))
    }
    if (!is.null(attr(x, "verdict")$privacy)) {
      cat(paste(strwrap(paste("Privacy:", attr(x, "verdict")$privacy)), collapse = "\n"), "\n", sep = "")
    }
    cat("report: ", attr(x, "report"), "\n", sep = "")
  }
  invisible(x)
}

#' @rdname scdiff_evaluate
#' @export
summary.scdiff_evaluation <- function(object, ...) {
  list(
    verdict = attr(object, "verdict")$text, uses = attr(object, "uses"), findings = attr(object, "findings"),
    types = attr(object, "types"), notes = attr(object, "notes")
  )
}

#' @rdname scdiff_evaluate
#' @export
plot.scdiff_evaluation <- function(x, ...) {
  if (requireNamespace("ggplot2", quietly = TRUE)) {
    picture <- autoplot.scdiff_evaluation(x, ...)
    print(picture)
    return(invisible(picture))
  }
  cells <- attr(x, "cells")
  order <- order(cells$y * 1e3 %% 1) # neither side covers the other
  colours <- c(real = "#0072B2", synthetic = "#E69F00")
  graphics::plot(
    cells$x[order], cells$y[order],
    col = paste0(colours[cells$side[order]], "99"), pch = 16, cex = 0.8,
    xlab = "", ylab = "", axes = FALSE, main = "Real and synthetic cells", ...
  )
  graphics::box(col = "grey80")
  graphics::legend("bottom", names(colours), col = colours, pch = 16, bty = "n", horiz = TRUE, inset = c(0, -0.12), xpd = NA)
  invisible(cells)
}

#' Real and synthetic cells as a ggplot
#'
#' @param object An evaluation, see [scdiff_evaluate()].
#' @param ... Not used.
#' @return A ggplot with three panels: real and synthetic cells together, and each
#'   set on its own, coloured by cell type.
#' @keywords internal
autoplot.scdiff_evaluation <- function(object, ...) {
  need("ggplot2", "Pictures")
  cells <- attr(object, "cells")
  typed <- any(!is.na(cells$type))
  both <- transform(cells, panel = "real and synthetic", colour = cells$side)
  both <- both[order(both$y * 1e3 %% 1), ] # neither side covers the other
  drawn <- if (typed) {
    rbind(both, transform(cells, panel = paste(cells$side, "by type"), colour = ifelse(is.na(cells$type), "no type", cells$type)))
  } else {
    both
  }
  types <- sort(unique(drawn$colour[drawn$panel != "real and synthetic"]))
  palette <- rep_len(c(
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#AA4499", "#999933", "#882255", "#000000"
  ), length(types))
  colours <- c(real = "#0072B2", synthetic = "#E69F00", stats::setNames(palette, types))
  colours <- colours[!duplicated(names(colours))]
  drawn$colour <- factor(drawn$colour, names(colours))
  x <- y <- colour <- NULL # columns of the data
  ggplot2::ggplot(drawn, ggplot2::aes(x, y, colour = colour)) +
    ggplot2::geom_point(size = 0.6, alpha = 0.7) +
    ggplot2::facet_wrap("panel") +
    ggplot2::scale_colour_manual(values = colours, name = NULL) +
    ggplot2::guides(colour = ggplot2::guide_legend(override.aes = list(size = 3, alpha = 1))) +
    ggplot2::theme_minimal() +
    ggplot2::theme(
      axis.title = ggplot2::element_blank(), axis.text = ggplot2::element_blank(),
      panel.grid = ggplot2::element_blank()
    )
}

#' @rdname scdiff_evaluate
#' @param evaluation An evaluation returned by `scdiff_evaluate()`.
#' @export
scdiff_report <- function(evaluation) {
  report <- attr(evaluation, "report")
  if (is.null(report) || !file.exists(report)) {
    fail("The report no longer exists: run scdiff_evaluate(..., output = \"report\") to keep it.")
  }
  utils::browseURL(report)
  invisible(report)
}

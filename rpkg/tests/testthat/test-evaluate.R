part <- function(keep) list(counts = blood$counts[, keep], obs = blood$obs[keep, , drop = FALSE])
half <- seq_len(ncol(blood$counts)) %% 2 == 0

test_that("scores come with real reference, baseline, verdict and report", {
  skip_if_no_python()
  found <- scdiff_evaluate(part(half), part(!half), label = "cell_type", fast = TRUE)
  expect_s3_class(found, c("scdiff_evaluation", "data.frame"), exact = TRUE)
  expect_true(all(c("metric", "value", "real_reference", "baseline", "position", "definition") %in% names(found)))
  auc <- found[found$metric == "rf_auc", ]
  expect_lt(abs(auc$value - 0.5), 0.15)
  expect_gt(auc$baseline, auc$real_reference)
  expect_identical(auc$baseline, auc[[auc$baseline_name]])
  expect_true(file.exists(attr(found, "report")))
  expect_match(readLines(attr(found, "report"), 1), "<!doctype html>", ignore.case = TRUE)
  expect_output(print(found), attr(found, "verdict")$word, ignore.case = TRUE)
  said <- c(attr(found, "verdict")$text, attr(found, "findings"), attr(found, "notes"))
  expect_false(any(grepl("--[a-z]", said)))
  expect_setequal(attr(found, "cells")$side, c("real", "synthetic"))
  expect_true(all(c("type", "metric", "value") %in% names(attr(found, "types"))))
})

test_that("wrong cells are found out, and a picture is drawn of them", {
  skip_if_no_python()
  wrong <- part(!half)
  rownames(wrong$counts) <- rev(rownames(wrong$counts))
  found <- scdiff_evaluate(part(half), wrong, label = "cell_type", fast = TRUE)
  expect_gt(found$value[found$metric == "rf_auc"], 0.95)
  expect_identical(attr(found, "verdict")$word, "poor")
  file <- tempfile(fileext = ".png")
  grDevices::png(file)
  plot(found)
  grDevices::dev.off()
  expect_gt(file.size(file), 5000)
})

test_that("what is wrong is said, and old reports stay", {
  skip_if_no_python()
  expect_refused(scdiff_evaluate(part(half), part(!half), label = "celltype"), "`real` has no column 'celltype'.*'cell_type'")
  folder <- tempfile()
  scdiff_evaluate(part(half), part(!half), fast = TRUE, output = folder)
  expect_refused(scdiff_evaluate(part(half), part(!half), fast = TRUE, output = folder), "`force`", class = "scdiffkit_file_error")
})

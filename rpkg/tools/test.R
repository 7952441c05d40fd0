# Tests the R package as it is installed in the first library: Rscript rpkg/tools/test.R FOLDER_OF_THE_PACKAGE
# Ends with a line "N passed, N failed, N skipped", and with 1 if one failed.
library(testthat)
folder <- commandArgs(TRUE)[1]
found <- as.data.frame(test_dir(
  file.path(folder, "tests", "testthat"),
  package = "scdiffkit", load_package = "installed", stop_on_failure = FALSE,
  reporter = MultiReporter$new(list(CheckReporter$new(), ListReporter$new()))
))
failed <- sum(found$failed > 0 | found$error)
skipped <- sum(found$skipped & !(found$failed > 0 | found$error))
cat(sprintf("%d passed, %d failed, %d skipped\n", nrow(found) - failed - skipped, failed, skipped))
quit(status = as.integer(failed > 0))

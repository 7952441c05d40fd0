# Time and memory of sending cells to Python and back: Rscript rpkg/tools/speed.R [GENES CELLS NON_ZEROS]
# Prints seconds there and back, and peak memory over the matrix's own size.
# Rscript rpkg/tools/speed.R train: seconds of the same training from R and on the command line, each in a new
# process, in turns.
suppressPackageStartupMessages(library(scdiffkit))
if (identical(commandArgs(TRUE), "train")) {
  folder <- tempfile("speed-")
  dir.create(folder)
  file <- scdiff_write(blood, file.path(folder, "cells.h5ad"))
  python <- reticulate::py_config()$python
  seconds <- function(command, arguments) {
    system.time(stopifnot(system2(command, arguments, stdout = FALSE, stderr = FALSE) == 0))[["elapsed"]]
  }
  pairs <- vapply(1:3, function(i) {
    out <- file.path(folder, c("r", "shell"))
    code <- sprintf("library(scdiffkit); scdiff_train(blood, label = 'cell_type', max_steps = 300, out = '%s', force = TRUE)", out[1])
    c(
      r = seconds("Rscript", c("-e", shQuote(code))),
      shell = seconds(file.path(dirname(python), "scdiff"), c(
        "train", file, "--label", "cell_type", "--max-steps", "300", "--out", out[2], "--force"
      ))
    )
  }, numeric(2))
  print(round(pairs, 1))
  cat(sprintf("training from R took %.2f times as long as on the command line (medians)\n", median(pairs["r", ]) / median(pairs["shell", ])))
  quit()
}
size <- as.numeric(commandArgs(TRUE))
if (length(size) != 3) size <- c(2e4, 2e4, 2e7)
set.seed(1)
per_cell <- size[3] / size[2]
m <- new(getClass("dgCMatrix", where = asNamespace("Matrix")),
  i = as.integer(replicate(size[2], sort(sample.int(size[1], per_cell)) - 1L)), x = rpois(size[3], 2) + 1,
  p = as.integer(seq(0, size[3], by = per_cell)), Dim = as.integer(size[1:2]),
  Dimnames = list(paste0("g", seq_len(size[1])), paste0("c", seq_len(size[2])))
)
peak <- function() {
  status <- readLines("/proc/self/status")
  as.numeric(gsub("[^0-9]", "", grep("^VmHWM", status, value = TRUE))) / 2^20
}
invisible(scdiff_status(quiet = TRUE))
echo <- function() {
  answer <- scdiffkit:::call_python("echo", data = scdiffkit:::pack_cells(list(counts = m), "m"))
  scdiffkit:::unpack_cells(answer, "list")$counts
}
small <- m[, 1:10]
own <- as.numeric(object.size(m)) / 2^30
invisible(scdiffkit:::call_python("echo", data = scdiffkit:::pack_cells(list(counts = small), "m"))) # loads what is needed
invisible(gc())
before <- peak()
seconds <- numeric(5)
for (i in seq_along(seconds)) {
  seconds[i] <- system.time(back <- echo())[["elapsed"]]
  stopifnot(identical(back, m))
  rm(back)
}
cat(sprintf(
  "%.0f x %.0f, %.0f non-zeros (%.2f GiB): %.2f s there and back (median of 5, %.2f to %.2f); peak memory %.2f GiB above before = %.1f copies\n",
  size[1], size[2], size[3], own, median(seconds), min(seconds), max(seconds), peak() - before, (peak() - before) / own
))

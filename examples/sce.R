# A SingleCellExperiment in, synthetic cells of the same kind out, and a file that others can read.
# Rscript examples/sce.R
library(scdiffkit)
suppressPackageStartupMessages(library(SingleCellExperiment))

cells <- SingleCellExperiment(list(counts = blood$counts), colData = DataFrame(blood$obs))

run <- scdiff_train(cells, label = "cell_type", out = file.path(tempdir(), "run"), max_steps = 100)
synthetic <- scdiff_sample(run, n = 100)
print(synthetic)
print(table(synthetic$cell_type))

file <- scdiff_write(synthetic, file.path(tempdir(), "cells.h5ad"))
print(scdiff_info(file))

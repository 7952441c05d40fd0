# A Seurat object in, synthetic cells of the same kind out, and whether to trust them.
# Rscript examples/seurat.R
library(scdiffkit)

cells <- SeuratObject::CreateSeuratObject(blood$counts, meta.data = blood$obs)

run <- scdiff_train(cells, label = "cell_type", out = file.path(tempdir(), "run"), max_steps = 100)
synthetic <- scdiff_sample(run, n = 100, where = list(cell_type = c("CD14", "CD19")))
print(synthetic)
print(table(synthetic$cell_type))

more <- scdiff_augment(cells, "cell_type", c("CD8 T" = 60), run = run)
print(table(more$cell_type, synthetic = more$synthetic))

print(scdiff_evaluate(cells, scdiff_sample(run, n = 300), label = "cell_type", fast = TRUE))

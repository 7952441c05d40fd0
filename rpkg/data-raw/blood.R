# Makes data/blood.rda from the cells that come with scanpy:
# RETICULATE_PYTHON=PYTHON Rscript data-raw/blood.R, in the package's folder, with it installed.
sc <- reticulate::import("scdiffkit.datasets", convert = FALSE)
file <- tempfile(fileext = ".h5ad")
reticulate::py_to_r(sc$demo_cells()$write_h5ad(file))
cells <- scdiffkit::scdiff_read(file)
cells$obs$cell_type <- factor(sub(".*CD8.*", "CD8 T", sub(".*CD4.*", "CD4 T", as.character(cells$obs$cell_type))))
common <- names(sort(table(cells$obs$cell_type), decreasing = TRUE))[1:5]
set.seed(1)
keep <- sort(sample(which(cells$obs$cell_type %in% common), 300))
genes <- sort(order(-Matrix::rowSums(cells$counts > 0))[1:500])
blood <- list(
  counts = as.matrix(cells$counts[genes, keep]),
  obs = data.frame(cell_type = droplevels(cells$obs$cell_type[keep]), row.names = colnames(cells$counts)[keep])
)
levels(blood$obs$cell_type) <- sub("\\+/.*|\\+ .*", "", levels(blood$obs$cell_type))
storage.mode(blood$counts) <- "integer"
save(blood, file = "data/blood.rda", compress = "xz")

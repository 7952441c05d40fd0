#' Blood cells
#'
#' Raw counts of 300 cells x 500 genes from human blood, as a list that every
#' function of this package accepts.
#'
#' @format A list of `counts` (integer matrix, genes x cells) and `obs` (a data frame of
#'   cells, `cell_type` with 5 types).
#' @source Cells of the 68k PBMC data of Zheng et al. 2017 (Nature Communications
#'   8:14049), as they come with scanpy (`datasets.pbmc68k_reduced`).
"blood"

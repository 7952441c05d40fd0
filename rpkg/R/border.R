# Vectors, data frames and matrices as bytes, and back. Bytes are the one thing
# that every version of reticulate carries across unchanged; inst/python has the
# other half.

pack_strings <- function(x) {
  x <- enc2utf8(as.character(x))
  x[is.na(x)] <- ""
  writeBin(x, raw())
}

unpack_strings <- function(bytes) {
  if (length(bytes) == 0) {
    return(character())
  }
  x <- readBin(bytes, "character", sum(bytes == as.raw(0)))
  Encoding(x) <- "UTF-8"
  x
}

pack_numbers <- function(x) writeBin(x, raw(), endian = "little")

# sizes: one byte a value for missing values, four for integers, eight for doubles
unpack_integers <- function(bytes) readBin(bytes, "integer", length(bytes) / 4, endian = "little")
unpack_doubles <- function(bytes) readBin(bytes, "double", length(bytes) / 8, endian = "little")

pack_column <- function(x, name) {
  column <- list(name = name, missing = NULL)
  if (is.factor(x)) {
    if (anyNA(levels(x))) { # as addNA() makes them
      x <- factor(x, levels(x)[!is.na(levels(x))], ordered = is.ordered(x))
    }
    return(c(column, list(
      kind = "factor", values = pack_numbers(as.integer(x)), levels = pack_strings(levels(x)), ordered = is.ordered(x)
    )))
  }
  if (!is.null(attr(x, "class")) || !(is.logical(x) || is.integer(x) || is.double(x))) {
    x <- as.character(x) # dates and the like, too
  }
  kind <- if (is.logical(x)) "logical" else if (is.integer(x)) "integer" else if (is.double(x)) "double" else "string"
  missing <- is.na(x)
  if (kind != "double" && any(missing)) {
    column$missing <- writeBin(as.raw(missing), raw())
  }
  values <- switch(kind,
    string = pack_strings(x),
    logical = pack_numbers(as.integer(x)),
    pack_numbers(as.vector(x))
  )
  c(column, list(kind = kind, values = values))
}

unpack_column <- function(column) {
  if (column$kind == "factor") {
    codes <- unpack_integers(column$values)
    codes[codes == 0] <- NA
    return(structure(
      codes,
      levels = unpack_strings(column$levels),
      class = if (column$ordered) c("ordered", "factor") else "factor"
    ))
  }
  x <- switch(column$kind,
    string = unpack_strings(column$values),
    logical = unpack_integers(column$values) != 0,
    integer = unpack_integers(column$values),
    double = unpack_doubles(column$values)
  )
  if (!is.null(column$missing)) {
    x[as.logical(as.integer(column$missing))] <- NA
  }
  x
}

pack_frame <- function(frame) {
  frame <- as.data.frame(frame, optional = TRUE)
  flat <- vapply(frame, function(x) is.atomic(x) && is.null(dim(x)), logical(1))
  if (!all(flat)) {
    warning(
      "The columns ", paste(names(frame)[!flat], collapse = ", "), " were left out because they hold more than one value per row.",
      call. = FALSE
    )
  }
  twice <- names(frame)[duplicated(names(frame))]
  if (length(twice)) {
    fail(sprintf("There are two columns named '%s': rename one of them.", twice[1]))
  }
  unname(Map(pack_column, frame[flat], names(frame)[flat]))
}

unpack_frame <- function(columns, rows = NULL) {
  n <- if (length(rows)) length(rows) else if (length(columns)) length(unpack_column(columns[[1]])) else 0L
  values <- lapply(columns, unpack_column)
  names(values) <- vapply(columns, function(column) column$name, character(1))
  structure(values, class = "data.frame", row.names = if (length(rows)) rows else seq_len(n))
}

# A sparse matrix of genes x cells.
pack_matrix <- function(m) {
  m <- as_sparse(m)
  list(dim = dim(m), x = send(m@x), i = send(m@i), p = send(m@p))
}

unpack_matrix <- function(payload, genes, cells) {
  new("dgCMatrix",
    x = fetch(payload$x, unpack_doubles), i = fetch(payload$i, unpack_integers), p = fetch(payload$p, unpack_integers),
    Dim = as.integer(unlist(payload$dim)), Dimnames = list(genes, cells)
  )
}

# Large vectors cross one by one, and go in blocks, so that few bytes are there twice.
BLOCK <- 2^19

send <- function(x) {
  parcel <- python_half()$Parcel(as.double(length(x)), typeof(x))
  for (start in if (length(x)) seq(1, length(x), by = BLOCK)) {
    parcel$fill(pack_numbers(x[start:min(length(x), start + BLOCK - 1)]))
  }
  tidy(x)
  parcel
}

fetch <- function(number, unpack) {
  python_half()
  x <- unpack(suspendInterrupts(state$take(number)))
  tidy(x)
  x
}

# Else R keeps the bytes of a large vector until it needs their place.
tidy <- function(x) if (length(x) > 1e6) gc(full = FALSE)

as_sparse <- function(m) {
  if (is(m, "dgCMatrix")) {
    return(m)
  }
  if (is.data.frame(m)) {
    m <- as.matrix(m)
  }
  if (!is.matrix(m) && !is(m, "Matrix")) {
    return(as(m, "dgCMatrix")) # DelayedArray and BPCells keep theirs on disk
  }
  if (is.matrix(m) && !is.numeric(m) && !is.logical(m)) {
    fail(sprintf("A matrix of counts must hold numbers, but this one holds values of type %s.", typeof(m)))
  }
  as(as(as(as(m, "Matrix"), "dMatrix"), "generalMatrix"), "CsparseMatrix")
}

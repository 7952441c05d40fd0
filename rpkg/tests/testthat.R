library(testthat)
library(scdiffkit)

test_check("scdiffkit")

"""Reports of evaluations and comparisons: self-contained HTML pages and their pictures."""

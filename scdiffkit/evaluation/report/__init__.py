"""The report of an evaluation: HTML pages that need no other file, and their pictures."""

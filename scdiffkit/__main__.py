"""`python -m scdiffkit` is `scdiff`, for launchers that start modules (torchrun -m scdiffkit train ...)."""

from scdiffkit.cli import main

main()

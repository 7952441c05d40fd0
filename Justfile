# just COMMAND; without just, ./dev does the same.

# run the whole main job on bundled cells
demo *options:
    ./dev demo {{options}}

# the tests; `just test --all` for the long ones, too
test *options:
    ./dev test {{options}}

# ruff, ruff format, mypy, import-linter
lint:
    ./dev lint

# training and sampling rates on this machine
speed:
    ./dev setup
    .venv/bin/python benchmarks/speed.py

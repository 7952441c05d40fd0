"""List long functions (over 60 lines of code) and files (over 400 lines) that do not say "is long because".

python tools/sizes.py scdiffkit
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LINES_OF_FUNCTION = 60
LINES_OF_FILE = 400
REASON = "is long because"  # in a docstring, followed by the reason


def too_long(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = len(text.splitlines())
    if lines > LINES_OF_FILE and REASON not in (ast.get_docstring(tree) or ""):
        yield f"{path}: {lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            body = node.body[1:] if docstring else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            if lines > LINES_OF_FUNCTION and REASON not in (docstring or ""):
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines of code"


def main() -> int:
    found = [line for folder in sys.argv[1:] for path in sorted(Path(folder).rglob("*.py")) for line in too_long(path)]
    for line in found:
        sys.stdout.write(line + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""Expression <-> the vector that is diffused. A codec knows tensors of counts; it knows no AnnData and no file.

Every codec has `dim`, `bounds`, `fit(cells, rows, val_rows)`, `encode(counts, library_size, codes) -> x0`,
`decode(x0, codes, library_size, generator) -> (counts, library_size)`, `state()` / `load_state()`, `settings()` and
`takes_library_size`: whether it decodes at a library size (B,) asked for. Then `library_size(x0)` tells x0's own, and
`library_sizes()` the training cells' median and largest.
"""

from __future__ import annotations

from typing import Any

from scdiffkit.codecs.count import CountCodec
from scdiffkit.codecs.gene import GeneCodec
from scdiffkit.config import CodecConfig

Codec = CountCodec | GeneCodec
CODECS: dict[str, type[Codec]] = {"count": CountCodec, "gene": GeneCodec}


def build(config: CodecConfig, **settings: Any) -> Codec:
    """The codec of `config.name`; settings as its `settings()` gives them."""
    return CODECS[config.name](config, **settings)  # type: ignore[arg-type]

"""Expression <-> the vector that is diffused. A codec knows tensors of counts; it knows no AnnData and no file.

`Codec` is what every codec provides. A new one is a file with a class, and a line in CODECS.
"""

from __future__ import annotations

from typing import Any

from scdiffkit.codecs.contract import Codec
from scdiffkit.codecs.count import CountCodec
from scdiffkit.codecs.gene import GeneCodec
from scdiffkit.config import CodecConfig

__all__ = ["CODECS", "Codec", "CountCodec", "GeneCodec", "build"]

CODECS: dict[str, type[Codec]] = {"count": CountCodec, "gene": GeneCodec}


def build(config: CodecConfig, **settings: Any) -> Codec:
    """The codec of `config.name`; settings as its `settings()` gives them."""
    return CODECS[config.name](config, **settings)

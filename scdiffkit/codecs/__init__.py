"""Codecs map expression to the vector that is diffused, and back. They take tensors of counts, not AnnData or files.

`Codec` is the protocol of all codecs. To add one, write its class in a file of its own and register it in CODECS.
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
    """Build the codec `config.name`. `settings` are those that its `settings()` returns."""
    return CODECS[config.name](config, **settings)

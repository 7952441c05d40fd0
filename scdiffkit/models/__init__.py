"""The networks. All have one constructor signature and `forward(x_t (B, D), t (B,), conditions (B, K)) -> (B, D)`.

A network with several outputs per coordinate returns (B, outputs, D).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from scdiffkit.config import ModelConfig
from scdiffkit.models.dit import DiT
from scdiffkit.models.unet import UNet
from scdiffkit.models.whitebox import WhiteBoxDiT

ARCHITECTURES: dict[str, type[nn.Module]] = {"dit": DiT, "whitebox": WhiteBoxDiT, "unet": UNet}


def build(dim: int, config: ModelConfig, num_categories: Sequence[int] = (), outputs: int = 1) -> nn.Module:
    """Build the network `config.arch` for vectors of length `dim`, with `outputs` outputs per coordinate."""
    return ARCHITECTURES[config.arch](dim, config, num_categories, outputs)

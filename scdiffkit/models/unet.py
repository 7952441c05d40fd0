"""A one-dimensional convolutional U-Net over the genes, the baseline of the papers.

Source: the U-Net of DDPM (Ho et al. 2020) with one spatial dimension, as in the comparison of scRDiT.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdiffkit.config import UNetConfig
from scdiffkit.models.layers import Attention, StepAndConditions, zero_


class ResBlock(nn.Module):
    """Two convolutions modulated by c: (B, C_in, L), (B, E) -> (B, C_out, L). It starts as the skip connection."""

    def __init__(self, channels_in: int, channels_out: int, embedding_size: int, kernel_size: int) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv1d(channels_in, channels_out, kernel_size, padding=pad)
        self.modulation = nn.Linear(embedding_size, 2 * channels_out)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv1d(channels_out, channels_out, kernel_size, padding=pad)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        shift, scale = self.modulation(F.silu(c))[:, :, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over positions with a residual, (B, C, L) -> (B, C, L). It starts as the identity."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attn = Attention(channels, num_heads)
        zero_(self.attn.proj)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x).transpose(1, 2)).transpose(1, 2)


class UNet(nn.Module):
    """Maps x_t (B, D), t (B,) and conditions (B, K) or None to a prediction (B, D)."""

    def __init__(self, dim: int, config: UNetConfig, num_categories: Sequence[int] = (), outputs: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.multiple = config.patch_size * 2 ** (len(config.channel_mults) - 1)  # so that every level can be halved
        p, k, e = config.patch_size, config.kernel_size, 4 * config.channels
        levels = [config.channels * m for m in config.channel_mults]
        self.embedder = StepAndConditions(e, num_categories)
        self.conv_in = nn.Conv1d(1, levels[0], max(p, k), stride=p, padding=0 if p >= k else k // 2)
        skips = [levels[0]]
        width = levels[0]
        self.down = nn.ModuleList()
        for i, channels in enumerate(levels):
            for _ in range(config.num_res_blocks):
                self.down.append(ResBlock(width, channels, e, k))
                skips.append(width := channels)
            if i < len(levels) - 1:
                self.down.append(nn.Conv1d(width, width, k, stride=2, padding=k // 2))
                skips.append(width)
        self.mid1 = ResBlock(width, width, e, k)
        self.mid_attn = AttentionBlock(width, config.num_heads)
        self.mid2 = ResBlock(width, width, e, k)
        self.up = nn.ModuleList()
        for i, channels in reversed(list(enumerate(levels))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(ResBlock(width + skips.pop(), channels, e, k))
                width = channels
            if i > 0:
                self.up.append(nn.ConvTranspose1d(width, width, 2, stride=2))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.ConvTranspose1d(width, outputs, p, stride=p)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None) -> Tensor:
        c = self.embedder(t, conditions)  # (B, E)
        x = F.pad(x_t, (0, -self.dim % self.multiple))[:, None]  # (B, 1, L)
        x = self.conv_in(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, c) if isinstance(layer, ResBlock) else layer(x)
            skips.append(x)
        x = self.mid2(self.mid_attn(self.mid1(x, c)), c)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1), c)
            else:
                x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))[..., : self.dim].squeeze(1)

"""The diffusion transformer on genes, with adaLN-Zero blocks.

Source: scRDiT (arXiv 2404.06153), after DiT (Peebles & Xie 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scdiffkit.config import DiTConfig, WhiteBoxConfig
from scdiffkit.models.layers import (
    Attention,
    Mlp,
    PatchEmbed,
    PatchLinear,
    StepAndConditions,
    distinct,
    modulate,
    of_cells,
    sincos_positions,
    zero_,
)


class DiTBlock(nn.Module):
    """Computes x += gate * attn(modulate(norm(x))) and x += gate * mlp(modulate(norm(x))). Gates start at zero."""

    def __init__(self, hidden_size: int, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(hidden_size, 6 * hidden_size)))

    def forward(self, x: Tensor, c: Tensor, which: Tensor | None = None) -> Tensor:
        modulation = of_cells(self.adaLN_modulation(c), which)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)  # each (B, H)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """Maps tokens to patches, (B, N, H) -> (B, outputs, N * P). The weights start at zero."""

    def __init__(self, hidden_size: int, patch_size: int, num_patches: int | None, outputs: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(hidden_size, 2 * hidden_size)))
        self.linear = PatchLinear(num_patches, hidden_size, outputs * patch_size)
        self.outputs = outputs
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, c: Tensor, which: Tensor | None = None) -> Tensor:
        shift, scale = of_cells(self.adaLN_modulation(c), which).chunk(2, dim=1)
        patches = self.linear(modulate(self.norm(x), shift, scale))  # (B, N, outputs * P)
        return patches.unflatten(2, (self.outputs, -1)).transpose(1, 2).flatten(2)


class DiT(nn.Module):
    """Maps x_t (B, D), t (B,) and conditions (B, K) or None to a prediction (B, D).

    `num_categories` are the numbers of categories of the condition columns, empty for an unconditional model.
    """

    def __init__(
        self, dim: int, config: DiTConfig | WhiteBoxConfig, num_categories: Sequence[int] = (), outputs: int = 1
    ) -> None:
        super().__init__()
        self.dim = dim
        h, per_patch = config.hidden_size, config.patch_embedding == "per-patch"
        self.x_embedder = PatchEmbed(dim, config.patch_size, h, per_patch)
        self.num_patches = self.x_embedder.num_patches
        self.register_buffer("pos_embed", sincos_positions(self.num_patches, h), persistent=False)
        self.embedder = StepAndConditions(h, num_categories)
        self.blocks = nn.ModuleList(self.make_block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(h, config.patch_size, self.num_patches if per_patch else None, outputs)

    def make_block(self, config: DiTConfig | WhiteBoxConfig) -> nn.Module:
        assert config.mlp_ratio is not None
        attn = Attention(config.hidden_size, config.num_heads)
        return DiTBlock(config.hidden_size, attn, Mlp(config.hidden_size, config.mlp_ratio))

    def forward(self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None) -> Tensor:
        x = self.x_embedder(x_t) + self.pos_embed  # (B, N, H)
        which = None
        if not self.training:  # when sampling, all cells are at one step: embed each distinct pair once
            t, conditions, which = distinct(t, conditions)
        c = self.embedder(t, conditions)  # (B, H), or (distinct, H)
        for block in self.blocks:
            x = block(x, c, which)
        return self.final_layer(x, c, which)[..., : self.dim].squeeze(1)  # (B, D), or (B, outputs, D)

"""The White-Box diffusion transformer: MSSA for attention, ISTA for the MLP.

Source: White-Box Diffusion Transformer (arXiv 2411.06785), after CRATE (Yu et al. 2023), eq. 11-12 and 17.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdiffkit.config import DiTConfig, WhiteBoxConfig
from scdiffkit.models.dit import DiT, DiTBlock
from scdiffkit.models.layers import Attention, Mlp, merge_heads, modulate, of_cells, split_heads, xavier, zero_


class MSSA(nn.Module):
    """Multi-head subspace self-attention: per head, one projection U_k is query, key and value (CRATE eq. 11-12)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.U = xavier(nn.Linear(hidden_size, hidden_size, bias=False))
        self.proj = xavier(nn.Linear(hidden_size, hidden_size))

    def forward(self, z: Tensor) -> Tensor:
        w = split_heads(self.U(z), self.num_heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(w, w, w)))


class ISTA(nn.Module):
    """One step of sparse coding, ReLU(Z + eta * D^T (Z - D Z) - eta * lambda) with complete D (CRATE eq. 17)."""

    def __init__(self, hidden_size: int, step_size: float, lambda_: float) -> None:
        super().__init__()
        self.step_size, self.lambda_ = step_size, lambda_
        self.D = nn.Parameter(torch.empty(hidden_size, hidden_size))
        nn.init.kaiming_uniform_(self.D)

    def forward(self, z: Tensor) -> Tensor:
        D, eta = self.D, self.step_size
        threshold = D.new_full((len(D),), -eta * self.lambda_)
        if z.numel() > 2 * D.numel():
            # With more tokens than twice the width, compute D^T - D^T D first: one product with the tokens, not two.
            step = F.linear(z, torch.addmm(D.T, D.T, D, beta=eta, alpha=-eta), threshold)
        else:
            step = F.linear(z - F.linear(z, D), eta * D.T, threshold)
        return F.relu(z + step)


class CrateBlock(nn.Module):
    """The original CRATE block: x += gate * MSSA(.), then x = ISTA(.) without a residual. Tokens are sparse, >= 0."""

    def __init__(self, hidden_size: int, attn: nn.Module, ista: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.ista = ista
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(hidden_size, 5 * hidden_size)))

    def forward(self, x: Tensor, c: Tensor, which: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2 = of_cells(self.adaLN_modulation(c), which).chunk(5, dim=1)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return self.ista(modulate(self.norm2(x), shift2, scale2))


class WhiteBoxDiT(DiT):
    """A DiT with MSSA and ISTA. For ablation, the config restores DiT's attention or MLP separately."""

    def make_block(self, config: DiTConfig | WhiteBoxConfig) -> nn.Module:
        config = cast(WhiteBoxConfig, config)
        h = config.hidden_size
        attn = (MSSA if config.attention == "mssa" else Attention)(h, config.num_heads)
        if config.feed_forward == "mlp":
            assert config.mlp_ratio is not None
            return DiTBlock(h, attn, Mlp(h, config.mlp_ratio))
        assert config.ista_step_size is not None
        assert config.ista_lambda is not None
        ista = ISTA(h, config.ista_step_size, config.ista_lambda)
        return DiTBlock(h, attn, ista) if config.ista_residual == "gated" else CrateBlock(h, attn, ista)

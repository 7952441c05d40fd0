"""Layers that the architectures share: patch embedding, embeddings of timestep and conditions, attention, MLP.

Shapes are written with B cells, D coordinates, N tokens, P = patch_size, H = hidden_size and K condition columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = 0  # the code of a condition that is not given; the codes of categories start at 1


class PatchEmbed(nn.Module):
    """Cuts a cell into patches of P neighbouring coordinates and maps each to a token: (B, D) -> (B, N, H).

    The papers use one linear map for all patches. `per_patch` gives each patch its own map, because genes, unlike
    pixels, are not interchangeable.
    """

    def __init__(self, dim: int, patch_size: int, hidden_size: int, per_patch: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = math.ceil(dim / patch_size)
        self.padding = self.num_patches * patch_size - dim
        self.proj = PatchLinear(self.num_patches if per_patch else None, patch_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.padding))
        # Contiguous by cell, like everything that follows.
        return self.proj(x.unflatten(1, (self.num_patches, self.patch_size))).contiguous()  # (B, N, H)


class PatchLinear(nn.Module):
    """A linear map of tokens, shared by all tokens (`num_patches` None) or with separate weights for each."""

    def __init__(self, num_patches: int | None, in_features: int, out_features: int) -> None:
        super().__init__()
        lead = () if num_patches is None else (num_patches,)
        self.weight = nn.Parameter(torch.empty(*lead, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(*lead, out_features))
        bound = math.sqrt(6 / (in_features + out_features))  # Xavier
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return x @ self.weight + self.bias
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight).transpose(0, 1)


def sincos_positions(num_patches: int, hidden_size: int) -> Tensor:
    """Return a fixed sine-cosine table of positions (N, H) that uses all H channels."""
    position = torch.arange(num_patches, dtype=torch.float64)[:, None]
    omega = 10000 ** (-torch.arange(hidden_size // 2, dtype=torch.float64) / (hidden_size / 2))
    return torch.cat([torch.sin(position * omega), torch.cos(position * omega)], dim=1).float()


class TimestepEmbedder(nn.Module):
    """Embeds timesteps t (B,) as (B, H), with sinusoids and a two-layer MLP (DiT)."""

    def __init__(self, hidden_size: int, frequency_size: int = 256, max_period: float = 10000.0) -> None:
        super().__init__()
        half = frequency_size // 2
        freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
        self.freqs: Tensor
        self.register_buffer("freqs", freqs, persistent=False)
        layers = nn.Linear(frequency_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Tensor) -> Tensor:
        args = t[:, None].float() * self.freqs
        return self.mlp(torch.cat([torch.cos(args), torch.sin(args)], dim=1))


class LabelEmbedder(nn.Module):
    """Embeds condition codes (B, K) as the sum (B, H) of one embedding per column. Code 0 is "unknown"."""

    def __init__(self, num_categories: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        tables = [nn.Embedding(n + 1, hidden_size) for n in num_categories]
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.tables = nn.ModuleList(tables)

    def forward(self, conditions: Tensor) -> Tensor:
        return torch.stack([table(conditions[:, k]) for k, table in enumerate(self.tables)]).sum(0)


class StepAndConditions(nn.Module):
    """Embeds timestep and conditions as their sum c (B, H), which modulates every block."""

    def __init__(self, hidden_size: int, num_categories: Sequence[int]) -> None:
        super().__init__()
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_categories, hidden_size) if num_categories else None

    def forward(self, t: Tensor, conditions: Tensor | None) -> Tensor:
        c = self.t_embedder(t)
        if self.y_embedder is None:
            return c
        if conditions is None:
            conditions = t.new_full((len(t), len(self.y_embedder.tables)), UNKNOWN, dtype=torch.long)
        return c + self.y_embedder(conditions)


class Attention(nn.Module):
    """Multi-head self-attention with biases: (B, N, H) -> (B, N, H)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier(nn.Linear(hidden_size, 3 * hidden_size))
        self.proj = xavier(nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.fc1 = xavier(nn.Linear(hidden_size, inner))
        self.fc2 = xavier(nn.Linear(inner, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, H / heads)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, N, H)


def distinct(t: Tensor, conditions: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the distinct pairs of timestep t (B,) and conditions (B, K), and the index of each cell's pair (B,)."""
    key = t
    for column in conditions.unbind(1) if conditions is not None else ():
        key = key * (column.max() + 1) + column
    _, which = key.unique(return_inverse=True)
    first = torch.empty(int(which.max()) + 1, dtype=torch.long, device=t.device)
    first[which] = torch.arange(len(t), device=t.device)  # the index of any cell with the pair
    return t[first], None if conditions is None else conditions[first], which


def of_cells(values: Tensor, which: Tensor | None) -> Tensor:
    """Expand values (distinct, H) to cells (B, H). If `which` is None, they already are per cell."""
    return values if which is None else values.index_select(0, which)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply adaLN to x (B, N, H) with shift and scale (B, H), in their dtype: later products round x to it anyway."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None]).to(shift.dtype)


def xavier(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

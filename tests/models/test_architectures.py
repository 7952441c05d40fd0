"""Oracles: the papers' parameter counts, closed forms of MSSA and ISTA, shapes, zero-initialised outputs."""

import pytest
import torch

from scdiffkit.config import DiTConfig, UNetConfig, WhiteBoxConfig, build_run_config, make
from scdiffkit.models import ARCHITECTURES, build
from scdiffkit.models.dit import DiT
from scdiffkit.models.layers import Attention, LabelEmbedder, PatchEmbed
from scdiffkit.models.whitebox import ISTA, MSSA

SMALL = {"patch_size": 16, "hidden_size": 32, "depth": 2, "num_heads": 4}
CONFIGS = {
    "dit": make(DiTConfig, **SMALL),
    "dit, per patch": make(DiTConfig, patch_embedding="per-patch", **SMALL),
    "whitebox": make(WhiteBoxConfig, **SMALL),
    "whitebox, crate": make(WhiteBoxConfig, ista_residual="crate", **SMALL),
    "whitebox, attention back": make(WhiteBoxConfig, attention="mhsa", **SMALL),
    "whitebox, mlp back": make(WhiteBoxConfig, feed_forward="mlp", **SMALL),
    "unet": make(UNetConfig, channels=8, num_heads=2),
    "unet, patches": make(UNetConfig, channels=16, patch_size=7, channel_mults=(1, 2), kernel_size=5),
}


def parameters(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def wake(network):
    """Zero-initialised parts would hide what a test looks for: give every parameter a value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return network.eval()


@pytest.mark.parametrize(("preset", "count"), [("scrdit", 33_870_346), ("whitebox-dit", 17_926_666)])
def test_the_papers_presets_have_the_papers_parameters(preset, count):
    with torch.device("meta"):
        assert parameters(build(2000, build_run_config(preset).model)) == count


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dim", [1, 33, 100])
def test_shape_in_is_shape_out_and_the_start_is_zero(name, dim):
    network = build(dim, CONFIGS[name], [3, 2])
    x, t, y = torch.randn(5, dim), torch.arange(5), torch.tensor([[0, 0], [1, 2], [3, 1], [2, 0], [0, 2]])
    out = network(x, t, y)
    assert out.shape == x.shape
    assert (out == 0).all()
    assert wake(network)(x, t, y).abs().min() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_cells_of_a_batch_do_not_see_each_other(name):
    network = wake(build(40, CONFIGS[name], [3]))
    x, t, y = torch.randn(6, 40), torch.randint(1000, (6,)), torch.randint(4, (6, 1))
    together = network(x, t, y)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_step_and_condition_matter_and_none_means_unknown(name):
    network = wake(build(40, CONFIGS[name], [3, 2]))
    x, t = torch.randn(2, 40), torch.tensor([10, 10])
    y = torch.tensor([[1, 1], [1, 1]])
    base = network(x, t, y)
    assert not torch.allclose(base, network(x, t + 500, y))
    assert not torch.allclose(base, network(x, t, torch.tensor([[2, 1], [2, 1]])))
    assert not torch.allclose(base, network(x, t, torch.tensor([[1, 2], [1, 2]])))
    torch.testing.assert_close(network(x, t, None), network(x, t, torch.zeros(2, 2, dtype=torch.long)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name):
    network = wake(build(40, CONFIGS[name], [3])).train()
    network(torch.randn(3, 40), torch.tensor([1, 2, 3]), torch.tensor([[1], [2], [3]])).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_tokens_without_positions_commute_with_a_permutation():
    network = wake(build(64, CONFIGS["dit"]))
    network.pos_embed.zero_()
    x, t = torch.randn(2, 64), torch.tensor([3, 700])
    order = torch.tensor([2, 0, 3, 1])

    def shuffled(z):
        return z.view(2, 4, 16)[:, order].reshape(2, 64)

    torch.testing.assert_close(network(shuffled(x), t), shuffled(network(x, t)), rtol=1e-4, atol=1e-5)


def test_positions_are_distinct_and_use_every_channel():
    pos = build(2000, make(DiTConfig, patch_size=10, hidden_size=64, num_heads=4)).pos_embed
    assert (torch.cdist(pos, pos) + torch.eye(200) > 1e-3).all()
    assert (pos.std(0) > 1e-4).all()


def test_per_patch_embedding_is_a_linear_map_of_its_own_for_each_patch():
    embed = wake(PatchEmbed(10, 4, 6, per_patch=True))
    x = torch.randn(3, 10)
    padded = torch.nn.functional.pad(x, (0, 2))
    for i in range(3):
        expected = padded[:, 4 * i : 4 * i + 4] @ embed.proj.weight[i] + embed.proj.bias[i]
        torch.testing.assert_close(embed(x)[:, i], expected)


def test_mssa_is_crate_eq_11_and_12():
    """SSA(Z | U_k) = (U_k^T Z) softmax((U_k^T Z)^T (U_k^T Z)), one head after another, columns as tokens."""
    mssa = wake(MSSA(12, 3))
    z = torch.randn(1, 5, 12)
    heads = []
    for k in range(3):
        U = mssa.U.weight[4 * k : 4 * k + 4].T  # (H, p)
        w = U.T @ z[0].T  # (p, N)
        heads.append(w @ torch.softmax((w.T @ w) / 4**0.5, dim=0))
    expected = torch.cat(heads).T @ mssa.proj.weight.T + mssa.proj.bias
    torch.testing.assert_close(mssa(z)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_ista_is_crate_eq_17_for_few_and_for_many_tokens(tokens):
    ista = wake(ISTA(8, 0.1, 0.3))
    z = torch.randn(1, tokens, 8)
    Z, D = z[0].T, ista.D
    expected = torch.relu(Z + 0.1 * D.T @ (Z - D @ Z) - 0.1 * 0.3).T
    torch.testing.assert_close(ista(z)[0], expected, rtol=1e-4, atol=1e-5)
    assert (expected == 0).any()


def test_ista_lowers_what_it_minimises():
    """One step from z is a proximal gradient step of ||Z - D A||^2 / 2 + lambda |A|_1 over A >= 0."""
    torch.manual_seed(0)
    ista = ISTA(16, 0.05, 0.1)
    with torch.no_grad():
        ista.D.mul_(0.5)
    z = torch.rand(1, 64, 16)

    def cost(a):
        return 0.5 * (z[0].T - ista.D @ a).square().sum() + 0.1 * a.abs().sum()

    assert cost(ista(z)[0].T) < cost(z[0].T)


def test_crate_tokens_are_sparse_and_not_negative():
    network = wake(build(64, CONFIGS["whitebox, crate"]))
    seen = []
    network.blocks[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    network(torch.randn(4, 64), torch.tensor([1, 10, 100, 999]))
    assert seen[0].min() == 0
    assert 0.05 < (seen[0] == 0).float().mean() < 0.95


def test_the_switches_put_dits_parts_back():
    h = {"patch_size": 10, "hidden_size": 64, "depth": 1, "num_heads": 4}
    dit = build(100, make(DiTConfig, **h))
    both = build(100, make(WhiteBoxConfig, attention="mhsa", feed_forward="mlp", **h))
    assert parameters(both) == parameters(dit)
    both.load_state_dict(wake(dit).state_dict())
    x, t = torch.randn(2, 100), torch.tensor([1, 2])
    torch.testing.assert_close(both(x, t), dit(x, t))


def test_attention_equals_torchs():
    ours = wake(Attention(12, 3))
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-4, atol=1e-5)


def test_conditions_add_up():
    embedder = LabelEmbedder([2, 3], 5)
    out = embedder(torch.tensor([[1, 3]]))
    torch.testing.assert_close(out[0], embedder.tables[0].weight[1] + embedder.tables[1].weight[3])


def test_the_registry_holds_the_three_architectures():
    assert set(ARCHITECTURES) == {"dit", "whitebox", "unet"}
    assert ARCHITECTURES["dit"] is DiT


@pytest.mark.parametrize("name", CONFIGS)
def test_several_outputs_a_coordinate(name):
    network = wake(build(33, CONFIGS[name], [3], outputs=2))
    out = network(torch.randn(5, 33), torch.arange(5), torch.ones(5, 1, dtype=torch.long))
    assert out.shape == (5, 2, 33)
    assert not torch.allclose(out[:, 0], out[:, 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_cells_at_the_same_step_with_the_same_conditions_share_what_depends_on_nothing_else(name):
    network = wake(build(40, CONFIGS[name], [3, 2]))
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(12, 40, generator=generator), torch.tensor([7, 500]).repeat(6)
    y = torch.stack([torch.randint(n, (12,), generator=generator) for n in (4, 3)], dim=1)
    torch.testing.assert_close(network(x, t, y), network.train()(x, t, y), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.eval()(x, t, None), network.train()(x, t, None), atol=1e-5, rtol=1e-4)

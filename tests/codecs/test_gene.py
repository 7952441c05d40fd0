"""The papers' codec: an exact round trip, the papers' formula, and depth read off the cells themselves."""

import numpy as np
import pytest
import torch
from scipy import sparse

from scdiffkit import codecs
from scdiffkit.config import GeneCodecConfig, make
from scdiffkit.data.cells import TrainingCells
from scdiffkit.errors import ConfigError

TARGET = 1e4
OPTIONS = [
    {},
    {"scale": False},
    {"zero_negation": 0.0},
    {"zero_negation": 0.0, "zero_threshold": 0.0, "scale": False},
    {"zero_negation": 10.0, "zero_threshold": 0.0},
    {"gene_order": "correlation"},
]


def cells(n=300, genes=400, seed=0):
    """Counts (n, genes) of droplet-like depth, and library sizes that include genes not chosen."""
    rng = np.random.default_rng(seed)
    size = rng.integers(800, 4000, n)
    share = rng.dirichlet(np.full(genes, 0.3)) * 0.1
    counts = rng.poisson(size[:, None] * share)
    counts[:, 0] = 1  # at least one gene in every cell
    library = counts.sum(1) + rng.poisson(size * 0.9)
    return torch.tensor(counts, dtype=torch.float32), torch.tensor(library, dtype=torch.float32)


def fitted(counts, library, **options):
    codec = codecs.build(make(GeneCodecConfig, **options), num_genes=counts.shape[1], target_sum=TARGET)
    codec.fit(source(counts, library), np.arange(len(counts)))
    return codec


def source(counts, library):
    """The cells as the codec reads them, without conditions."""
    return TrainingCells(sparse.csr_matrix(counts.numpy()), library.numpy(), np.zeros((len(counts), 0), dtype=np.int64))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_encode_and_decode_give_the_cells_back(options):
    counts, library = cells()
    codec = fitted(counts, library, **options)
    decoded, size = codec.decode(codec.encode(counts, library))
    assert ((decoded == 0) == (counts == 0)).all()  # zeros exactly, no more, no fewer
    assert (decoded == decoded.round()).all()
    error = (size / library).log().abs()
    assert error.quantile(0.9) < 0.02  # most detected genes hold one count, which tells the depth
    assert (decoded == counts).float().mean() > 0.999


def test_whatever_is_detected_has_a_count():
    """A value just above the threshold is less than half a count in cells of small library size."""
    counts, library = cells()
    codec = fitted(counts, library, scale=False)
    x0 = codec.encode(counts, library)
    x0[:, 0] = codec.threshold + 0.1  # a gene that every cell has
    decoded, size = codec.decode(x0)
    assert size.max() > 2 * size.min()
    assert ((decoded > 0) == (counts > 0)).all()


def test_the_values_are_the_papers():
    """log1p(counts / total * 1e4), zeros at -10, nothing scaled."""
    counts, library = cells()
    codec = fitted(counts, library, scale=False)
    expected = np.log1p(counts.numpy() / library.numpy()[:, None] * 1e4)
    expected[counts.numpy() == 0] = -10
    np.testing.assert_allclose(codec.encode(counts, library), expected, rtol=1e-5)


def test_scaled_values_have_unit_variance_and_stay_within_bounds():
    counts, library = cells()
    codec = fitted(counts, library)
    x0 = codec.encode(counts, library)
    assert x0.mean().item() == pytest.approx(0, abs=1e-3)
    assert x0.std().item() == pytest.approx(1, abs=1e-3)
    assert codec.bounds == pytest.approx((x0.min().item(), x0.max().item()), abs=1e-4)


@pytest.mark.parametrize(("threshold", "expected"), [(None, [0, 0, 1]), (0.0, [0, 0, 0]), (-9.0, [0, 1, 1])])
def test_below_the_threshold_is_an_exact_zero(threshold, expected):
    counts, library = cells(genes=3)
    codec = fitted(counts, library, zero_threshold=threshold, scale=False)
    decoded, _ = codec.decode(torch.tensor([[-9.5, -8.5, -3.0]]))  # the gap is -10 to about 1
    assert (decoded[0] > 0).int().tolist() == expected


def test_only_the_rows_given_are_learnt_from():
    counts, library = cells()
    codec, changed = fitted(counts[:200], library[:200]), counts.clone()
    changed[200:] *= 50
    again = codecs.build(codec.config, **codec.settings())
    again.fit(source(changed, library), np.arange(200), np.arange(200, 300))
    torch.testing.assert_close(again.state(), codec.state(), rtol=0, atol=0)


def test_conditions_and_noise_change_nothing_and_a_library_size_is_refused():
    counts, library = cells()
    codec = fitted(counts, library)
    codes = torch.randint(0, 3, (len(counts), 2))
    x0 = codec.encode(counts, library, codes)
    torch.testing.assert_close(x0, codec.encode(counts, library), rtol=0, atol=0)
    for a, b in zip(codec.decode(x0, codes, None, torch.Generator().manual_seed(1)), codec.decode(x0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not codec.takes_library_size
    with pytest.raises(ConfigError, match="library size from its values"):
        codec.decode(x0, codes, library)


def test_a_sampled_value_beyond_the_data_is_cut_off():
    counts, library = cells()
    codec = fitted(counts, library)
    decoded, size = codec.decode(torch.full((2, 400), 50.0))
    assert torch.isfinite(decoded).all()
    assert decoded.max() <= counts.max() * 5
    assert size.max() <= library.max()


def test_a_cell_of_zeros_decodes_to_a_cell_of_zeros():
    counts, library = cells()
    codec = fitted(counts, library)
    decoded, size = codec.decode(torch.full((1, 400), codec.bounds[0]))
    assert (decoded == 0).all()
    assert torch.isfinite(size).all()


def test_correlated_genes_become_neighbours():
    rng = np.random.default_rng(0)
    programme = rng.integers(0, 2, (400, 4))  # 4 programmes of 5 genes, shuffled
    genes = rng.permutation(np.repeat(np.arange(4), 5))
    counts = torch.tensor(rng.poisson(0.2 + 6 * programme[:, genes]), dtype=torch.float32)
    codec = fitted(counts, counts.sum(1) + 100, gene_order="correlation")
    groups = genes[codec.order.numpy()]
    assert sorted(codec.order.tolist()) == list(range(20))
    assert (np.diff(groups) != 0).sum() == 3  # each programme lies in one piece


def test_too_many_genes_to_order_names_the_remedy():
    counts = 1 + torch.eye(2, 10_001)
    codec = codecs.build(make(GeneCodecConfig, gene_order="correlation"), num_genes=10_001, target_sum=TARGET)
    with pytest.raises(ConfigError, match="gene_order=data"):
        codec.fit(source(counts, counts.sum(1)), np.arange(2))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_state_is_all_there_is(options):
    counts, library = cells()
    codec = fitted(counts, library, **options)
    again = codecs.build(codec.config, **codec.settings())
    again.load_state(codec.state())
    torch.testing.assert_close(again.encode(counts, library), codec.encode(counts, library), rtol=0, atol=0)
    x0 = torch.randn(50, 400)
    for a, b in zip(again.decode(x0), codec.decode(x0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_spike_and_slab_are_the_genes_detection_and_level():
    counts, library = cells(n=3000)
    codec = fitted(counts, library, gene_order="correlation")
    spike, log_odds, mean, std = codec.spike_slab()
    x0 = codec.encode(counts, library)
    detected = x0 > spike + 1e-3
    assert spike == pytest.approx(x0.min().item(), abs=1e-5)
    np.testing.assert_allclose(torch.sigmoid(log_odds), detected.float().mean(0), atol=1e-3)
    often = detected.float().mean(0) > 0.1
    means = (x0 * detected).sum(0) / detected.sum(0)
    np.testing.assert_allclose(mean[often], means[often], atol=0.01)
    spread = torch.stack([x0[detected[:, i], i].std() for i in torch.nonzero(often).flatten().tolist()])
    np.testing.assert_allclose(std[often], spread, rtol=0.1)

"""The scores of benchmarks/quality.py against cases whose answer is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "quality.py"
    spec = importlib.util.spec_from_file_location("benchmark_quality", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def few_trees(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "N_TREES", 20)


def test_split_is_stratified_disjoint_and_seeded(quality: ModuleType, tiny: AnnData) -> None:
    parts = quality.split(tiny, ["cell_type", "donor"], seed=1)
    names = [set(part.obs_names) for part in parts]
    assert sum(map(len, names)) == tiny.n_obs
    assert set.union(*names) == set(tiny.obs_names)
    for part, share in zip(parts, (0.6, 0.2, 0.2)):
        for name, rows in quality.groups(tiny.obs, ["cell_type", "donor"]).items():
            n = len(quality.groups(part.obs, ["cell_type", "donor"]).get(name, ()))
            assert abs(n - share * len(rows)) <= 2
    again, other = (quality.split(tiny, ["cell_type"], seed=s)[0].obs_names for s in (1, 2))
    assert list(again) == list(quality.split(tiny, ["cell_type"], seed=1)[0].obs_names)
    assert list(again) != list(other)


def test_split_trains_on_every_combination(quality: ModuleType, tiny: AnnData) -> None:
    lonely = tiny[[0, *np.flatnonzero(tiny.obs["cell_type"] != tiny.obs["cell_type"].iloc[0])]]
    for seed in range(8):
        train = quality.split(lonely, ["cell_type"], seed=seed)[0]
        assert lonely.obs["cell_type"].iloc[0] in set(train.obs["cell_type"])


def test_rows_like_copies_the_composition(quality: ModuleType, tiny: AnnData) -> None:
    train, test, _ = quality.split(tiny, ["cell_type"])
    rows = quality.rows_like(train.obs, test.obs, ["cell_type"])
    assert len(set(rows)) == len(rows)
    chosen = train.obs["cell_type"].iloc[rows].value_counts().to_dict()
    assert chosen == test.obs["cell_type"].value_counts().to_dict()


def test_auc_of_equal_and_of_different_cells(quality: ModuleType) -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 5))
    assert abs(quality.auc(real, rng.normal(size=(200, 5))) - 0.5) < 0.1
    assert quality.auc(real, rng.normal(4, 1, size=(200, 5))) > 0.99


def test_nearest_of_copies_is_zero(quality: ModuleType) -> None:
    cells = np.arange(6.0).reshape(3, 2)
    assert quality.nearest(cells, cells) == 0
    assert quality.nearest(cells + np.array([3, 4]), cells[-1:]) == pytest.approx(np.hypot(1, 2))


def test_scores_of_real_and_of_wrong_cells(quality: ModuleType, tiny: AnnData) -> None:
    train, test, reference = quality.split(tiny, ["cell_type", "donor"])
    options = {"label": "cell_type", "condition": "donor", "reference": reference}
    real = quality.score(reference, train, test, **options)
    assert real["auc_components"] < 0.7
    assert real["auc_genes"] < 0.7
    assert abs(real["f1_loss"]) < 0.2
    assert real["nn_ratio"] == pytest.approx(1, abs=0.1)
    assert real["lfc_ratio"] == pytest.approx(1, abs=0.2)
    wrong = train.copy()
    wrong.X = sparse.csr_matrix(np.random.default_rng(0).permuted(wrong.X.toarray(), axis=1))
    bad = quality.score(wrong, train, test, **options)
    assert bad["auc_components"] > 0.9
    assert bad["mmd_over_floor"] > 0.01
    assert bad["zeros_mae_over_floor"] > 0.01
    assert bad["f1_loss"] > 0.3
    copies = quality.score(train, train, test, **options)
    assert copies["nn_ratio"] == 0
    assert copies["f1_loss"] == 0


@pytest.mark.slow
def test_a_fault_in_some_genes_shows_in_the_sets_that_users_work_with(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Genes of 0.02 to 0.2 counts a cell come in clumps of the same mean."""
    choose = quality.choose_gene_sets
    monkeypatch.setattr(quality, "choose_gene_sets", lambda X, counts: choose(X, counts, n_genes=200))
    rng = np.random.default_rng(3)
    means = np.repeat([0.01, 0.1, 1.0], [100, 200, 200])
    cells = AnnData(sparse.csr_matrix(rng.poisson(means, (900, 500)).astype(np.float32)))
    cells.obs["cell_type"] = np.resize(["a", "b"], 900)
    train, test, reference = quality.split(cells, ["cell_type"])
    clumped = train.copy()
    X = clumped.X.toarray()
    X[:, means == 0.1] = 4 * rng.poisson(0.1 / 4, (clumped.n_obs, 200))
    clumped.X = sparse.csr_matrix(X)
    bad, good = (quality.score(c, train, test, label="cell_type") for c in (clumped, reference))
    assert bad["auc_medium_genes"] > 0.9
    assert bad["auc_abundant_genes"] < 0.65
    for name in ("auc_hvg_seurat", "auc_hvg_seurat_v3", "auc_medium_genes", "auc_abundant_genes", "auc_rare_genes"):
        assert good[name] == pytest.approx(0.5, abs=0.15)
    assert bad["auc_hvg_seurat_v3"] > 0.6


def test_results_from_before_a_score_leave_its_cell_empty(quality: ModuleType) -> None:
    def result(model: str, **scores: float) -> dict:
        return {"model": model, "dataset": "d", "seed": 0, "scores": {"auc_genes": 0.6, **scores}, "seconds": {}}

    lines = quality.table([result("old"), result("new", auc_hvg_seurat=0.7)])
    assert lines[0] == "| model | AUC, genes | HVG seurat |"
    assert lines[2:] == ["| new | 0.600 | 0.700 |", "| old | 0.600 |  |"]
    assert quality.over_datasets([result("old"), result("new", auc_hvg_seurat=0.7)])


def test_a_model_with_some_of_the_genes_is_compared_in_these(quality: ModuleType, tiny: AnnData) -> None:
    train, test, reference = quality.split(tiny, ["cell_type"])
    some = reference[:, 10:40].copy()
    with pytest.raises(ValueError, match="total_counts"):
        quality.score(some, train, test, label="cell_type")
    some.obs["total_counts"] = np.asarray(reference.X.sum(axis=1)).ravel()
    scores = quality.score(some, train, test, label="cell_type", reference=reference)
    assert scores["genes"] == 30
    assert scores["zeros_mae_over_floor"] == pytest.approx(0, abs=0.02)
    assert scores["auc_genes"] < 0.7


def test_fold_changes_and_their_correlation(quality: ModuleType) -> None:
    X = sparse.csr_matrix([[1.0, 0, 2], [1, 0, 2], [3, 0, 0], [9, 9, 9]])
    obs = AnnData(X).obs.assign(t=["a", "a", "a", "b"], c=["ctrl", "ctrl", "stim", "stim"])
    np.testing.assert_allclose(quality.fold_changes(X, obs, "t", "c", "a"), [2, 0, -2])
    np.testing.assert_array_equal(quality.detected(X, obs, "t", "a"), [True, False, True])
    np.testing.assert_array_equal(quality.fold_changes(X, obs, "t", "c", "b"), [0, 0, 0])  # no control cell
    a, used = np.array([3.0, 1, 2, 9]), np.array([True, True, True, False])
    assert quality.correlation(a, np.array([30.0, 1, 2, -9]), used) == 1
    assert quality.correlation(a, np.zeros(4), used) == 0


def test_codec_scores_see_the_gap_between_known_and_new_cells(quality: ModuleType, tiny: AnnData) -> None:
    """A codec that returns cells it knows, by their fold, as they are, and others without their library size."""
    train, test, reference = quality.split(tiny, ["cell_type"])
    folds = torch.arange(train.n_obs) % 5 + 1

    class Codec:
        def encode(
            self,
            counts: torch.Tensor,
            size: torch.Tensor,
            codes: torch.Tensor,
            *,
            generator: torch.Generator,
            fold: torch.Tensor | None,
        ) -> torch.Tensor:
            assert len(counts) == len(size) == len(codes)
            assert fold is None or len(fold) == len(counts)
            return counts.flip(1) if fold is None else counts

        def decode(
            self, x0: torch.Tensor, codes: torch.Tensor, size: torch.Tensor, generator: torch.Generator
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return x0, size

    conditions = {"categories": {"cell_type": ["B", "Mono", "T"]}, "combinations": []}
    run = SimpleNamespace(codec=Codec, genes=lambda: list(tiny.var_names), conditions=lambda: conditions)
    seen = quality.through_codec(run, train, batch_size=50, fold=folds)
    held_out = quality.through_codec(run, reference)
    np.testing.assert_array_equal(seen.X.toarray(), train.X.toarray())
    scores = quality.score_codec(seen[: test.n_obs], held_out, train, test)
    assert scores["codec_gap_components"] > 0.3
    assert scores["codec_gap_genes"] > 0.3


@pytest.mark.slow
def test_results_are_cached_and_become_tables(
    quality: ModuleType, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny.write_h5ad(tmp_path / "tiny.h5ad")
    command = ["quality.py", f"{tmp_path / 'tiny.h5ad'}:cell_type", "--seeds", "1", "--models", "gene-whitebox"]
    command += ["--set", "train.max_steps=2", "--set", "preprocess.n_top_genes=20", "--out", str(tmp_path / "quality")]
    for repeated in (False, True):
        monkeypatch.setattr(sys, "argv", [*command, "--check"])
        assert quality.main() == 0
        assert ("seed 0: gene-whitebox" in capsys.readouterr().out) != repeated
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "quality").glob("*.json"))]
    assert [r["model"] for r in results] == ["gene-whitebox", "reference", "shuffled"]
    assert results[0]["cells"]["generated"] == results[0]["cells"]["train"]
    tables = (tmp_path / "quality.md").read_text()
    rows = [line.split(" | ")[0] for line in tables.split("## tiny")[1].splitlines() if line.startswith("| ")]
    assert rows == ["| model", "| reference", "| shuffled", "| gene-whitebox"]

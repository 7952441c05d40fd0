"""How good are the generated cells? Models side by side with real cells (the floor) and a bad model, on real data."""

from __future__ import annotations

import scdiffkit  # isort: skip  # before torch: it sets how torch's threads wait

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scdiffkit.metrics.joint import mmd_pca
from scdiffkit.metrics.marginals import mean_mae, mean_per_gene, variance_mae, variance_per_gene, zeros_mae
from scdiffkit.preprocess import find_counts, lognormalise

SHARES = {"train": 0.6, "test": 0.2, "reference": 0.2}
TARGET_SUM = 1e4
N_COMPONENTS, N_CLASSIFIER_COMPONENTS, N_VARIABLE_GENES = 20, 50, 2000
N_TREES, N_FOLDS = 300, 5
NEAREST_K = 5
MIN_DETECTED = 0.05  # share of cells with a gene, for its fold change to be compared
PARTIAL = 0.99  # a model with genes of a smaller share of all counts has left genes out


# The split


def split(adata: AnnData, keys: Sequence[str], seed: int = 0) -> tuple[AnnData, AnnData, AnnData]:
    """Cells to train on, to score against (test) and to score as a perfect model (reference): 60, 20 and 20%.

    Stratified by the combinations of the obs columns `keys`: each has its share in each part but for rounding, and
    at least one cell to train on. The same seed gives the same split.
    """
    rng = np.random.default_rng([seed, 0])
    part = np.empty(adata.n_obs, dtype=int)
    for _, rows in groups(adata.obs, keys).items():
        order = rng.permutation(len(rows))
        place = (order + rng.random()) / len(rows)  # evenly over 0..1 from a random start: rounding favours no part
        part[rows] = np.searchsorted(np.cumsum(list(SHARES.values()))[:-1], place, side="right")
        part[rows[order == 0]] = 0
    train, test, reference = (adata[part == i].copy() for i in range(3))
    return train, test, reference


def groups(obs: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """Combination of the values of `keys` -> its rows."""
    names = pd.MultiIndex.from_frame(obs[list(keys)].astype(str))
    codes, uniques = names.factorize(sort=True)
    return {name: np.flatnonzero(codes == i) for i, name in enumerate(uniques)}


def rows_like(obs: pd.DataFrame, other: pd.DataFrame, keys: Sequence[str], seed: int = 0) -> np.ndarray:
    """Rows of `obs`, drawn at random: of each combination of `keys` as many as `other` has, where there are."""
    rng = np.random.default_rng([seed, 1])
    there = groups(obs, keys)
    wanted = {name: len(rows) for name, rows in groups(other, keys).items()}
    return np.sort(np.concatenate([rng.permutation(there[name])[:n] for name, n in wanted.items() if name in there]))


# The scores


def score(
    synthetic: AnnData,
    train: AnnData,
    test: AnnData,
    *,
    label: str,
    condition: str | None = None,
    reference: AnnData | None = None,
    response: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Every score of synthetic cells against real test cells, neither of which the components are fitted on.

    All hold raw counts (layers["counts"] or X) and obs[label]; genes are matched by name, and those that the
    synthetic cells lack are left out on all sides. Where there are more synthetic than test cells, as many are
    drawn with the test cells' composition; only the classifier's F1 is learnt from all of them. reference: other
    real cells; with them, scores relative to the floor in the same genes. condition: obs column with two values;
    with it, the fold changes between them in cells of type `response` (default: the type best covered).
    """
    keys = [label, *([condition] if condition else [])]
    space = Space(train, synthetic.var_names)
    real, trained, made_all = space.values(test), space.train, space.values(synthetic)
    rows = rows_like(synthetic.obs, test.obs, keys, seed)
    made, made_obs = made_all[rows], synthetic.obs.iloc[rows]
    real_pcs, trained_pcs, made_pcs = (space.components(X) for X in (real, trained, made))
    k = N_COMPONENTS
    scores: dict[str, float] = {
        "cells": made.shape[0],
        "genes": made.shape[1],
        "auc_components": auc(real_pcs[:, :k], made_pcs[:, :k], seed),
        "auc_genes": auc(space.variable(real), space.variable(made), seed),
        "mmd": mmd_pca(real_pcs[:, :k], made_pcs[:, :k]),
        **precision_recall(real_pcs[:, :k], made_pcs[:, :k]),
        "zeros_mae": zeros_mae(real, made),
        "mean_mae": mean_mae(real, made),
        "variance_mae": variance_mae(real, made),
        "nn_ratio": nearest(made_pcs[:, :k], trained_pcs[:, :k]) / nearest(real_pcs[:, :k], trained_pcs[:, :k]),
    }
    types = {"train": train, "test": test, "synthetic": synthetic}
    t = {name: cells.obs[label].astype(str).to_numpy() for name, cells in types.items()}
    scores["f1_real"] = macro_f1(trained_pcs, t["train"], real_pcs, t["test"])
    scores["f1_synthetic"] = macro_f1(space.components(made_all), t["synthetic"], real_pcs, t["test"])
    scores["f1_loss"] = scores["f1_real"] - scores["f1_synthetic"]
    if condition:
        response = response or best_covered(test.obs, label, condition)
        changes = fold_changes(real, test.obs, label, condition, response)
        used = detected(real, test.obs, label, response)
        scores["lfc_spearman"] = correlation(changes, fold_changes(made, made_obs, label, condition, response), used)
    if reference is not None:
        floor = space.values(reference)
        scores["mmd_over_floor"] = scores["mmd"] - mmd_pca(real_pcs[:, :k], space.components(floor)[:, :k])
        scores["zeros_mae_over_floor"] = scores["zeros_mae"] - zeros_mae(real, floor)
        if condition:
            of_real = correlation(changes, fold_changes(floor, reference.obs, label, condition, response), used)
            scores["lfc_ratio"] = scores["lfc_spearman"] / of_real
    return scores


def score_codec(run: Any, train: AnnData, test: AnnData, reference: AnnData, *, label: str, seed: int = 0) -> dict:
    """How well a codec that learns returns cells it was trained on, and cells it was not: AUCs against test cells.

    The gap between the two is how much of the codec is memory.
    """
    seen = train[rows_like(train.obs, test.obs, [label], seed)]
    scores: dict[str, float] = {}
    for name, cells in (("train", seen), ("held_out", reference)):
        decoded = through_codec(run, cells, seed)
        space = Space(train, decoded.var_names)
        real, made = space.values(test), space.values(decoded)
        k = N_COMPONENTS
        pcs = space.components(real)[:, :k], space.components(made)[:, :k]
        scores[f"codec_{name}_auc_components"] = auc(*pcs, seed)
        scores[f"codec_{name}_auc_genes"] = auc(space.variable(real), space.variable(made), seed)
    for space_name in ("components", "genes"):
        held_out, trained = (scores[f"codec_{name}_auc_{space_name}"] for name in ("held_out", "train"))
        scores[f"codec_gap_{space_name}"] = held_out - trained
    return scores


def through_codec(run: Any, cells: AnnData, seed: int = 0, batch_size: int = 512) -> AnnData:
    """Cells (raw counts) encoded and decoded by a run's codec, with the run's genes."""
    import torch

    from scdiffkit.data import Conditions

    codec, genes = run.codec(), run.genes()
    codes = torch.from_numpy(Conditions.from_dict(run.conditions()).encode(cells.obs))
    counts = find_counts(cells)[0]
    sizes = torch.from_numpy(np.asarray(counts.sum(axis=1), dtype=np.float32).ravel())
    counts = counts[:, cells.var_names.get_indexer(genes)]
    generator = torch.Generator().manual_seed(seed)
    decoded, decoded_sizes = [], []
    with torch.inference_mode():
        for start in range(0, cells.n_obs, batch_size):
            part = slice(start, start + batch_size)
            x0 = codec.encode(torch.from_numpy(counts[part].toarray()), sizes[part], codes[part])
            made, size = codec.decode(x0, codes[part], sizes[part], generator)
            decoded.append(sparse.csr_matrix(made.numpy()))
            decoded_sizes.append(size.numpy())
    obs = cells.obs.assign(total_counts=np.concatenate(decoded_sizes))
    return AnnData(sparse.vstack(decoded, format="csr"), obs=obs, var=pd.DataFrame(index=pd.Index(genes)))


class Space:
    """log1p(counts / total * 1e4) of the genes that a model has, their components and most variable genes.

    Everything is fitted on the training cells alone, so that test and synthetic cells are equally new to it.
    """

    def __init__(self, train: AnnData, genes: pd.Index) -> None:
        self.genes = train.var_names[train.var_names.isin(genes)]
        if not len(self.genes):
            raise ValueError("The synthetic and the training cells have no gene in common.")
        counts = find_counts(train)[0]
        share = counts[:, train.var_names.get_indexer(self.genes)].sum() / counts.sum()
        self.partial = share < PARTIAL
        self.train = self.values(train)
        n_components = min(N_CLASSIFIER_COMPONENTS, min(self.train.shape) - 1)
        self.pca = PCA(n_components, svd_solver="arpack", random_state=0).fit(self.train)
        self.most_variable = np.sort(np.argsort(-variance_per_gene(self.train), kind="stable")[:N_VARIABLE_GENES])

    def values(self, cells: AnnData) -> sparse.csr_matrix:
        """log1p-normalised values (cells, genes).

        The total is the cell's own sum, except for cells of a model that has left genes out: they must say in
        obs["total_counts"] what their sum over all genes would be.
        """
        counts = find_counts(cells)[0]
        has_all = set(self.genes) < set(cells.var_names)
        if self.partial and not has_all and "total_counts" not in cells.obs:
            raise ValueError("The cells hold only some of the genes and no obs['total_counts'] to normalise with.")
        totals = cells.obs["total_counts"].to_numpy() if self.partial and not has_all else None
        if totals is None:
            totals = np.asarray(counts.sum(axis=1)).ravel()
        chosen = counts[:, cells.var_names.get_indexer(self.genes)]
        X = sparse.csr_matrix(lognormalise(chosen, TARGET_SUM, totals), dtype=np.float64)
        X.eliminate_zeros()
        return X

    def components(self, X: sparse.csr_matrix) -> np.ndarray:
        """Values (n, genes) -> components (n, 50 or fewer), most variance first."""
        return self.pca.transform(X)

    def variable(self, X: sparse.csr_matrix) -> np.ndarray:
        """Values (n, genes) -> the most variable genes (n, 2000 or fewer), dense."""
        return X[:, self.most_variable].toarray().astype(np.float32)


def auc(real: np.ndarray, synthetic: np.ndarray, seed: int = 0) -> float:
    """Area under the ROC curve of a random forest telling synthetic from real cells it was not fitted on.

    Source: classifier two-sample test, Lopez-Paz & Oquab 2017 (arXiv 1610.06545).
    """
    cells = np.vstack([real, synthetic])
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    forest = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=-1)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    out_of_fold = cross_val_predict(forest, cells, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_synthetic, out_of_fold))


def precision_recall(real: np.ndarray, synthetic: np.ndarray, k: int = NEAREST_K) -> dict[str, float]:
    """Precision, recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020,
    arXiv 2002.09797) of synthetic (m, D) against real cells (n, D).

    A cell's ball reaches to its k-th nearest neighbour on its own side. Precision: share of synthetic cells in any
    real ball; recall: of real cells in any synthetic ball; density: real balls around a synthetic cell, over k;
    coverage: share of real balls that hold a synthetic cell.
    """
    between = cdist(real, synthetic)
    in_real_ball = between < radii(real, k)[:, None]
    in_synthetic_ball = between < radii(synthetic, k)[None, :]
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float(in_synthetic_ball.any(axis=1).mean()),
        "density": float(in_real_ball.sum(axis=0).mean() / k),
        "coverage": float(in_real_ball.any(axis=1).mean()),
    }


def radii(cells: np.ndarray, k: int) -> np.ndarray:
    """Distance of each cell (n, D) to its k-th nearest other cell, (n,)."""
    k = min(k, len(cells) - 1)
    return np.partition(cdist(cells, cells), k, axis=1)[:, k]  # position 0 is the cell itself


def nearest(cells: np.ndarray, others: np.ndarray) -> float:
    """Median distance of cells (n, D) to the nearest of the others (m, D)."""
    return float(np.median(cdist(cells, others).min(axis=1)))


def macro_f1(trained: np.ndarray, types: np.ndarray, test: np.ndarray, test_types: np.ndarray) -> float:
    """Macro-F1, over the types of the test cells, of a logistic regression on standardised components."""
    if len(set(types)) == 1:
        predicted = np.full(len(test), types[0])
    else:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        predicted = classifier.fit(trained, types).predict(test)
    return float(f1_score(test_types, predicted, labels=np.unique(test_types), average="macro", zero_division=0))


def best_covered(obs: pd.DataFrame, label: str, condition: str) -> str:
    """The type with the most cells in the condition where it has fewer."""
    return str(pd.crosstab(obs[label].astype(str), obs[condition].astype(str)).min(axis=1).idxmax())


def fold_changes(X: sparse.csr_matrix, obs: pd.DataFrame, label: str, condition: str, response: str) -> np.ndarray:
    """Per gene the second condition's mean log1p-normalised value minus the first's, in cells of one type.

    Conditions in the order of their names; no change where a condition has no cell of this type.
    """
    of_type = (obs[label].astype(str) == response).to_numpy()
    states = obs[condition].astype(str).to_numpy()
    first, second = sorted(set(states))
    means = [X[of_type & (states == state)] for state in (first, second)]
    if not all(part.shape[0] for part in means):
        return np.zeros(X.shape[1])
    return mean_per_gene(means[1]) - mean_per_gene(means[0])


def detected(X: sparse.csr_matrix, obs: pd.DataFrame, label: str, response: str) -> np.ndarray:
    """Which genes are in at least MIN_DETECTED of the cells of a type."""
    of_type = (obs[label].astype(str) == response).to_numpy()
    return np.asarray((X[of_type] > 0).mean(axis=0)).ravel() >= MIN_DETECTED


def correlation(a: np.ndarray, b: np.ndarray, used: np.ndarray) -> float:
    """Spearman's, 0 where a side is constant."""
    if np.ptp(a[used]) == 0 or np.ptp(b[used]) == 0:
        return 0.0
    return float(spearmanr(a[used], b[used]).statistic)

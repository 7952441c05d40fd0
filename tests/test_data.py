"""Composition is exact, batches hold the cells they say, and the order of training is a function of seed and step."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scdiffkit.codecs.source import batches
from scdiffkit.data.cells import TrainingCells, rows_of_step
from scdiffkit.data.conditions import Conditions
from scdiffkit.data.split import split_for_validation
from scdiffkit.errors import ConfigError, DataError, ScdiffWarning
from scdiffkit.preprocessing.pipeline import Prepared, preprocess

OBS = pd.DataFrame(
    {
        "cell_type": pd.Categorical(["B", "T", "T", "NK", "T", "B"], categories=["NK", "T", "B", "unused"]),
        "donor": ["d1", "d1", "d2", "d2", "d1", "d2"],
    }
)


def test_codes_keep_the_order_of_categories_and_leave_out_unused_ones():
    conditions = Conditions.of(OBS, ["cell_type", "donor"])
    assert conditions.categories == {"cell_type": ["NK", "T", "B"], "donor": ["d1", "d2"]}
    assert conditions.encode(OBS).tolist() == [[3, 1], [2, 1], [2, 2], [1, 2], [2, 1], [3, 2]]


def test_decode_is_the_inverse_and_keeps_categories():
    conditions = Conditions.of(OBS, ["cell_type", "donor"])
    decoded = conditions.decode(conditions.encode(OBS))
    assert decoded["cell_type"].astype(str).tolist() == OBS["cell_type"].astype(str).tolist()
    assert list(decoded["cell_type"].cat.categories) == ["NK", "T", "B"]
    assert conditions.decode(np.array([[0, 1]])).isna().to_numpy().tolist() == [[True, False]]


def test_they_survive_json():
    conditions = Conditions.of(OBS, ["cell_type", "donor"])
    assert Conditions.from_dict(conditions.to_dict()) == conditions


def counted(conditions, codes):
    return conditions.decode(codes).astype(str).value_counts().to_dict()


def test_the_training_composition_is_the_default():
    conditions = Conditions.of(OBS, ["cell_type", "donor"])
    assert counted(conditions, conditions.compose(12)) == {
        ("T", "d1"): 4, ("B", "d1"): 2, ("B", "d2"): 2, ("NK", "d2"): 2, ("T", "d2"): 2,
    }  # fmt: skip


def test_where_restricts_and_the_rest_follows_the_training_cells():
    conditions = Conditions.of(OBS, ["cell_type", "donor"])
    assert counted(conditions, conditions.compose(9, {"cell_type": ["T"]})) == {
        ("T", "d1"): 6,
        ("T", "d2"): 3,
    }
    both = conditions.compose(30, {"cell_type": ["T", "NK"], "donor": ["d2"]})
    assert counted(conditions, both) == {("T", "d2"): 15, ("NK", "d2"): 15}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"cell_type": ["b"]}, r"never seen cell_type='b'; did you mean 'B'"),
        ({"celltype": ["B"]}, r"'celltype'; did you mean 'cell_type'"),
    ],
)
def test_what_was_never_seen_is_refused_by_name(where, message):
    with pytest.raises(DataError, match=message):
        Conditions.of(OBS, ["cell_type", "donor"]).compose(5, where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"cell_type": ["B", "T", "B"]}, "cell_type=B more than once"),
        ({"cell_type": []}, "no value of 'cell_type'"),
    ],
)
def test_values_that_say_nothing_are_refused(where, message):
    with pytest.raises(ConfigError, match=message):
        Conditions.of(OBS, ["cell_type", "donor"]).compose(5, where)


# B was never stimulated, NK always, and the batches are not alike
STUDY = pd.DataFrame(
    [("B", "ctrl", "b1")] * 30 + [("T", "ctrl", "b1")] * 40 + [("T", "stim", "b2")] * 20 + [("NK", "stim", "b1")] * 10,
    columns=["cell_type", "condition", "batch"],
)


def test_a_combination_never_seen_is_drawn_with_a_warning_that_names_it():
    conditions = Conditions.of(STUDY, list(STUDY))
    with pytest.warns(ScdiffWarning, match="No training cell had cell_type=B and condition=stim: the model extrap"):
        codes = conditions.compose(60, {"cell_type": ["B"], "condition": ["stim"]})
    # 30 B cells of batch b1, 20 and 10 stimulated cells of b2 and b1, each one match: b1 and b2 as 40 to 20
    assert counted(conditions, codes) == {("B", "stim", "b1"): 40, ("B", "stim", "b2"): 20}


def test_other_columns_follow_the_cells_that_match_most():
    conditions = Conditions.of(STUDY, list(STUDY))
    with pytest.warns(ScdiffWarning, match="No training cell had condition=ctrl and batch=b2"):
        codes = conditions.compose(90, {"condition": ["ctrl"], "batch": ["b2"]})
    assert counted(conditions, codes) == {("B", "ctrl", "b2"): 30, ("T", "ctrl", "b2"): 60}
    with pytest.warns(ScdiffWarning, match="cell_type=NK and condition=ctrl and batch=b2"):
        codes = conditions.compose(5, {"cell_type": ["NK"], "condition": ["ctrl"], "batch": ["b2"]})
    assert counted(conditions, codes) == {("NK", "ctrl", "b2"): 5}


def test_several_combinations_never_seen_have_the_shares_of_independent_columns():
    conditions = Conditions.of(STUDY, ["cell_type", "condition", "batch"])
    with pytest.warns(ScdiffWarning, match="cell_type=B and batch=b2, or cell_type=NK and batch=b2"):
        codes = conditions.compose(80, {"cell_type": ["B", "NK"], "batch": ["b2"]})
    kinds = conditions.decode(codes)
    assert kinds["cell_type"].value_counts().to_dict() == {"B": 60, "NK": 20, "T": 0}  # 30 and 10 cells of each
    assert set(kinds["batch"]) == {"b2"}


def test_combinations_that_exist_leave_out_those_that_do_not(recwarn, caplog):
    conditions = Conditions.of(STUDY, list(STUDY))
    with caplog.at_level("INFO", logger="scdiffkit"):
        codes = conditions.compose(30, {"cell_type": ["B", "T", "NK"], "condition": ["stim"]})
    assert counted(conditions, codes) == {("T", "stim", "b2"): 20, ("NK", "stim", "b1"): 10}
    assert not [w for w in recwarn.list if issubclass(w.category, ScdiffWarning)]  # others' may come at any time
    assert "No training cell had cell_type=B and condition=stim, so no such cells are drawn" in caplog.text


def test_like_may_hold_combinations_never_seen():
    conditions = Conditions.of(STUDY, ["cell_type", "condition"])
    other = pd.DataFrame({"cell_type": ["B", "B", "T"], "condition": ["stim", "ctrl", "stim"]})
    with pytest.warns(ScdiffWarning, match="No training cell had cell_type=B and condition=stim: the") as caught:
        codes = conditions.composition_of(other)
    assert len(caught) == 1
    assert counted(conditions, codes) == {("B", "ctrl"): 1, ("B", "stim"): 1, ("T", "stim"): 1}
    with pytest.raises(DataError, match="no cells"):
        conditions.composition_of(other[:0])


def test_like_copies_composition_and_number():
    conditions = Conditions.of(OBS, ["cell_type"])
    other = pd.DataFrame({"cell_type": ["B"] * 3 + ["NK"]})
    assert counted(conditions, conditions.composition_of(other, None)) == {("B",): 3, ("NK",): 1}
    assert counted(conditions, conditions.composition_of(other, 8)) == {("B",): 6, ("NK",): 2}
    with pytest.raises(DataError, match="never seen"):
        conditions.composition_of(pd.DataFrame({"cell_type": ["Bee"]}), None)
    with pytest.raises(DataError, match="no obs column 'cell_type'"):
        conditions.composition_of(pd.DataFrame({"celltype": ["B"]}), None)


@given(st.integers(1, 5000), st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_apportioning_is_exact_to_one_cell(n, cells):
    conditions = Conditions({"c": [str(i) for i in range(len(cells))]}, [])
    codes = conditions.apportion(n, [((i + 1,), m) for i, m in enumerate(cells)])
    assert len(codes) == n
    got = np.bincount(codes[:, 0], minlength=len(cells) + 1)[1:]
    assert np.abs(got - n * np.array(cells) / sum(cells)).max() < 1


def test_no_conditions_is_a_composition_too():
    conditions = Conditions.of(OBS, [])
    assert conditions.compose(4).shape == (4, 0)
    assert conditions.decode(np.zeros((4, 0), dtype=int)).shape == (4, 0)


@given(st.integers(1, 60), st.integers(1, 90), st.integers(0, 3))
def test_every_epoch_shows_every_cell_once(n, batch_size, seed):
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([rows_of_step(s, batch_size, n, seed) for s in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert all(len(rows_of_step(s, batch_size, n, seed)) == batch_size for s in range(steps))


def test_epochs_differ_and_seeds_differ():
    a, b = rows_of_step(0, 50, 50, 0), rows_of_step(1, 50, 50, 0)
    assert a.tolist() != b.tolist()
    assert a.tolist() != rows_of_step(0, 50, 50, 1).tolist()
    assert a.tolist() == rows_of_step(0, 50, 50, 0).tolist()


@given(st.integers(1, 500), st.floats(0, 0.5), st.integers(0, 5))
def test_the_split_is_a_partition(n, share, seed):
    train, val = split_for_validation(np.ones((n, 0), dtype=int), share, seed)
    assert sorted([*train, *val]) == list(range(n))
    assert len(val) == round(n * share)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
def test_nothing_is_held_out_that_training_would_not_see(types, share, seed):
    codes = np.array(types)[:, None]
    train, val = split_for_validation(codes, share, seed)
    assert sorted([*train, *val]) == list(range(len(types)))
    assert set(types) == set(codes[train, 0])
    unlabelled = split_for_validation(codes[:, :0], share, seed)[1]
    assert set(val) <= set(unlabelled)  # the same cells but for those that were needed


def test_batches_are_the_cells(tiny):
    prepared = preprocess(tiny, n_top_genes=20, hvg_flavor="seurat", label="cell_type")
    genes = list(prepared.var_names[prepared.var["highly_variable"]])
    conditions = Conditions.of(prepared.obs, ["cell_type", "donor"])
    cells = TrainingCells.of(Prepared.of(prepared), conditions, highly_variable=True)
    rows = np.array([5, 0, 17])
    counts, library_size, codes = cells.batch(rows)
    raw = prepared[:, genes].layers["counts"].toarray()
    np.testing.assert_array_equal(counts, raw[rows])
    totals = np.asarray(prepared.layers["counts"].sum(axis=1)).ravel()  # over all genes, chosen or not
    np.testing.assert_array_equal(library_size, totals[rows])
    donors = conditions.decode(codes.numpy())["donor"].astype(str).tolist()
    assert donors == prepared.obs["donor"].astype(str).iloc[rows].tolist()
    together = sparse.vstack([part.counts for part in batches(cells, np.arange(len(cells)), 7)]).toarray()
    np.testing.assert_array_equal(together, raw)

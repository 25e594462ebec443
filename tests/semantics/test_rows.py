"""Rows of loops against the plain definition: one list for each lane."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl.results import storage
from ppl.semantics.rows import Rows

settings = st.tuples(st.integers(0, 5), st.integers(1, 4))
blocks = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def outputs(rng, count, lanes):
    """Outputs of a block, all of them different."""
    return {"x": rng.normal(size=(count, *lanes, 2)), "k": rng.integers(0, 2**60, (count, *lanes))}


def filled(counts, skip, thin, seed, lanes):
    """Rows, and what each lane should have of them."""
    rng, rows = np.random.default_rng(seed), Rows(skip, thin)
    expected = [[] for _ in range(lanes or 1)]
    for count in counts:
        outs = outputs(rng, count, () if lanes is None else (lanes,))
        done = None if lanes is None else rng.random((count, lanes)) < 0.6
        rows.add(done, outs)
        for step in range(count):
            for lane, made in enumerate(expected):
                if done is None or done[step, lane]:
                    where = step if lanes is None else (step, lane)
                    made.append({a: x[where] for a, x in outs.items()})
    assert rows.least == min(map(len, expected))
    return rows, [made[skip:][thin - 1 :: thin] for made in expected]


def same(rows, expected, lanes):
    ready = min(map(len, expected))
    assert rows.ready == ready
    for length in {ready, ready // 3} - {0}:
        found = rows.take(length)
        for address in ("x", "k"):
            table = [[made[r][address] for made in expected] for r in range(length)]
            table = np.array(table) if lanes is not None else np.array(table)[:, 0]
            np.testing.assert_array_equal(found[address], table)


@given(blocks, settings, seeds)
def test_of_whole_outputs(counts, setting, seed):
    same(*filled(counts, *setting, seed, None), None)


@given(blocks, settings, seeds, st.integers(1, 3))
def test_of_lanes_that_are_not_in_step(counts, setting, seed, lanes):
    same(*filled(counts, *setting, seed, lanes), lanes)


@pytest.mark.parametrize("lanes", [None, 1, 3])
def test_what_is_written_comes_back(lanes, tmp_path):
    rng = np.random.default_rng(1)
    rows, again = Rows(3, 2), Rows(3, 2)
    tree = jax.tree.structure({"k": 0, "x": 0})
    for part in range(4):
        for count in rng.integers(1, 9, 3):
            outs = outputs(rng, count, () if lanes is None else (lanes,))
            rows.add(None if lanes is None else rng.random((count, lanes)) < 0.6, outs)
        rows.unsaved()  # a write that failed: nothing is lost
        storage.save(tmp_path / str(part), rows.unsaved())
        rows.written()
        again.restore(storage.load(tmp_path / str(part))[0], tree)
    assert set(rows.unsaved()) == {"made"}  # each row is written once
    assert set(again.unsaved()) == {"made"}
    assert (again.least, again.ready) == (rows.least, rows.ready)
    assert rows.ready > 5
    jax.tree.map(np.testing.assert_array_equal, again.take(again.ready), rows.take(rows.ready))
    outs = outputs(rng, 4, () if lanes is None else (lanes,))
    for one in (rows, again):
        one.add(None if lanes is None else np.ones((4, lanes), bool), outs)
    jax.tree.map(np.testing.assert_array_equal, again.take(again.ready), rows.take(rows.ready))


def test_nothing_is_ready_before_the_slowest_lane_has_it():
    rows = Rows(1, 1)
    done = np.array([[True, False], [True, False], [True, True]])
    rows.add(done, {"x": np.zeros((3, 2))})
    assert (rows.least, rows.ready) == (1, 0)
    rows.add(done, {"x": np.zeros((3, 2))})
    assert (rows.least, rows.ready) == (2, 1)

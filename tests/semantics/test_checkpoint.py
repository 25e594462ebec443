"""Checkpoints: a run that is taken up again is the run that was never interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpyro.distributions import Distribution

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, ResultError
from ppl.results import storage
from ppl.semantics import lanes, suspended
from tests.stopping import Pressed

Y = np.array([0.3, -0.5, 1.2], np.float32)
KERNELS = {
    "flat": ppl.kernels.nuts(max_tree_depth=3),
    "lockstep": ppl.kernels.chees(step_size=0.3, trajectory_length=1.0, inverse_mass=1.0),
    "moves": ppl.kernels.random_walk(0.5, num_steps=2),
}


@ppl.model
def normal(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("n", 3):
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y)


def program(kind, y=Y, draws=60, thin=1, model=normal):
    return ppl.mcmc(model(y), KERNELS[kind], draws, 10, 2, thin=thin)


def run(kind, path=None, key=0, **options):
    path = None if path is None else str(path)
    return ppl.run(program(kind, **options), key, progress=False, checkpoint=path)


def same(one, other):
    np.testing.assert_array_equal(one["mu"], other["mu"])
    for name, x in one.stats.items():
        np.testing.assert_array_equal(x, other.stats[name])


@pytest.fixture(scope="module", params=KERNELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def whole(kind):
    return run(kind)


@pytest.fixture
def often(monkeypatch):
    """Write a part after every block, and make blocks short."""
    monkeypatch.setattr(suspended, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(lanes, "SECONDS", 0.0)


def interrupted(monkeypatch, after, kind, path, **options):
    with monkeypatch.context() as patch:
        patch.setattr(suspended, "progress_bar", lambda *_, **__: Pressed(after))
        return run(kind, path, **options)


def parts(path):
    return sorted(f.name for f in path.iterdir())


# --- The same draws -----------------------------------------------------------------------------


def test_a_checkpoint_changes_no_draw(kind, whole, tmp_path, often):
    same(run(kind, tmp_path / "c"), whole)
    written = parts(tmp_path / "c")
    assert len(written) > 1
    assert written == [f"part-{k:06d}.npz" for k in range(len(written))]
    same(run(kind, tmp_path / "c"), whole)  # all is there: nothing is drawn
    assert parts(tmp_path / "c") == written


def test_resumed_after_interruptions(kind, whole, tmp_path, often, monkeypatch):
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        interrupted(monkeypatch, 3, kind, path)  # in the warmup
    first = interrupted(monkeypatch, 30, kind, path)
    assert 0 < first.num_draws < 60
    second = interrupted(monkeypatch, 55, kind, path)
    assert first.num_draws < second.num_draws < 60
    np.testing.assert_array_equal(second["mu"], whole["mu"][:, : second.num_draws])
    same(run(kind, path), whole)


def test_resumed_runs_can_be_extended(kind, whole, tmp_path, monkeypatch):
    chains = interrupted(monkeypatch, 30, kind, tmp_path, draws=40)
    assert chains.num_draws < 60
    same(run(kind, tmp_path, draws=40).extend(20), whole)
    same(run(kind, tmp_path, draws=40).extend(20), whole)  # its rows were written too


def test_a_write_that_fails_loses_nothing(kind, whole, tmp_path, monkeypatch):
    chains = run(kind, tmp_path, draws=30)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save", full)
        with pytest.raises(OSError, match="no space"):
            chains.extend(20)
    same(chains.extend(30), whole)
    same(run(kind, tmp_path, draws=30).extend(30), whole)


def test_a_part_is_there_whole_or_not_at_all(kind, whole, tmp_path, often, monkeypatch):
    """Shows what a process leaves that dies while it writes: no part, and the same draws later."""
    replace, left = storage.os.replace, [2]

    def dies(*names):
        left[0] -= 1
        if not left[0]:
            raise SystemExit
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", dies)
        with pytest.raises(SystemExit):
            run(kind, tmp_path)
    assert parts(tmp_path) == ["part-000000.npz"]
    (tmp_path / ".part-000001.npz.0123456789ab.tmp").write_bytes(b"PK\3\4 half a file")
    same(run(kind, tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "kills"), [("flat", 10), ("moves", 10)])
def test_killed_twenty_times(kernel, kills, tmp_path):
    """Processes die by kill -9, in the middle of what they do; others go on, on 1 or 2 cores."""
    root = Path(__file__).resolve().parents[2]
    for left in (kills, 0):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONHASHSEED"] = str(left)  # sets are in another order in the last
        command = [sys.executable, "-m", "tests.killed_process", str(tmp_path), kernel, str(left)]
        subprocess.run(command, env=environment, cwd=root, check=True)
    assert not (tmp_path / "early.npz").exists()
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "resumed.npz") as resumed:
        assert set(resumed) == set(whole)
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name])


# --- Refusals -----------------------------------------------------------------------------------


@ppl.model
def wider(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.5))
    with ppl.plate("n", 3):
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y)


OTHERS = {
    "key": {"key": 1},
    "data": {"y": Y + 1},
    "draws": {"draws": 70},
    "thin": {"thin": 2, "draws": 30},
    "model": {"model": wider},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    run("moves", path)
    return path


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused(checkpoint, other):
    with pytest.raises(ArgumentError, match="belongs to another run"):
        run("moves", checkpoint, **OTHERS[other])


def test_another_kernel_is_refused(checkpoint):
    for kernel in (ppl.kernels.random_walk(0.4, num_steps=2), ppl.kernels.random_walk(0.5)):
        other = ppl.mcmc(normal(Y), kernel, 60, 10, 2)
        with pytest.raises(ArgumentError, match="belongs to another run"):
            ppl.run(other, 0, checkpoint=str(checkpoint))


def test_the_mark_of_a_run_sees_arrays_in_closures_and_not_the_order_of_parameters(
    tmp_path, monkeypatch
):
    def closed(offset):
        @ppl.model
        def model(y):
            mu = ppl.sample("mu", dist.StudentT(3.0, 0.0, 1.0))
            with ppl.plate("n", 3):
                ppl.sample("y", dist.Normal(mu + offset, 1.0), obs=y)

        return model

    run("moves", tmp_path, model=closed(Y), draws=3)
    # NumPyro keeps parameters in a set: their order is another one in each process.
    fields = Distribution.gather_pytree_data_fields.__func__
    turned = classmethod(lambda cls: fields(cls)[::-1])
    monkeypatch.setattr(Distribution, "gather_pytree_data_fields", turned)
    run("moves", tmp_path, model=closed(Y), draws=3)
    with pytest.raises(ArgumentError, match="belongs to another run"):
        run("moves", tmp_path, model=closed(2 * Y), draws=3)


def test_damaged_and_missing_parts(tmp_path, often):
    run("moves", tmp_path)
    first = tmp_path / "part-000000.npz"
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(ResultError, match="part-000000"):
        run("moves", tmp_path)
    first.unlink()
    with pytest.raises(
        ArgumentError, match=r"part-000001.npz is there, and an earlier part is not"
    ):
        run("moves", tmp_path)
    storage.save(first, {"0": {}})
    with pytest.raises(ArgumentError, match="belongs to another run"):
        run("moves", tmp_path)
    first.write_bytes(content)
    run("moves", tmp_path)


def test_two_processes_at_a_time(tmp_path, often, monkeypatch):
    add = suspended.Checkpoint.add

    def beside(self, part):
        if self.count == 2:
            (tmp_path / "part-000002.npz").write_bytes(b"of another process")
        add(self, part)

    monkeypatch.setattr(suspended.Checkpoint, "add", beside)
    with pytest.raises(ArgumentError, match=r"another process wrote part-000002\.npz"):
        run("moves", tmp_path)


def test_where_a_checkpoint_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ArgumentError, match="is a file"):
        run("moves", file)
    with pytest.raises(ArgumentError, match="an outermost loop that draws"):
        ppl.run(ppl.unobserve(normal(Y)), 0, checkpoint=str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()

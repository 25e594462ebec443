"""`ppl.run(..., mesh=)`: the same draws, whatever the devices.

A program on a mesh is the program without one, so that its law needs no test of its own: what has
to hold is that the same key draws the same. In double precision rounding decides no ancestor.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import jax
import pytest

import ppl
import ppl.distributions as dist
from tests.conftest import ROOT

SECONDS = 540  # a hang fails


def start(*args: str, devices: int) -> subprocess.Popen[str]:
    """Start `sharded_process.py` with so many devices made of one processor."""
    inherited = os.environ.get("XLA_FLAGS", "")
    flags = f"{inherited} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.sharded_process", *args],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[Any]:
    """Wait for processes and read what each found."""
    try:
        ends = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, error) in zip(processes, ends, strict=True):
        assert process.returncode == 0, error
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.fixture(scope="module")
def quick() -> Any:
    return finish(start("quick", devices=8))[0]


@pytest.fixture(scope="module")
def slow() -> Any:
    return finish(start("slow", devices=8))[0]


def test_devices_change_no_draw_of_a_finite_program(quick):
    assert quick["finite"]["seen"] > 150  # of 200 keys
    assert quick["finite"]["different"] == 0


def test_the_comparison_notices_devices_that_draw_the_same_lanes(quick):
    assert quick["finite"]["different with the bug"] >= 19  # of 20 keys


@pytest.mark.parametrize("name", ["importance", "plate", "in jit", "data on devices"])
def test_every_device_has_its_share(quick, name):
    difference, parts = quick["simple"][name]
    assert difference < 1e-12
    assert parts == ([[3, 3]] if name in ("plate", "in jit") else [[10]])


def test_particles_of_a_language_model_lie_on_all_devices(quick):
    found = quick["language"]
    assert found["resampled"] > 0
    assert found["difference"] < 1e-12
    assert found["parts"] == [[2, 9]]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("particles", ["3 devices for importance(normal)", '1000 (as at "mu")', "1002 in place"]),
        ("chains", ["8 devices for mcmc(normal)", "4 (as at", "8 in place", "make_mesh((4,)"]),
        ("alone", ["8 devices for lonely", "outside of every vmap", "without a mesh"]),
    ],
)
def test_devices_without_equal_shares_are_refused(quick, case, words):
    for word in words:
        assert word in quick["refused"][case]


@ppl.model
def coin():
    return ppl.sample("coin", dist.Bernoulli(0.5))


@pytest.mark.parametrize("mesh", [8, jax.devices(), "particles"])
def test_what_is_no_mesh_is_refused(mesh):
    with pytest.raises(ppl.errors.ArgumentError, match=r"needs a jax.sharding.Mesh.*make_mesh"):
        ppl.run(coin(), 0, mesh=mesh)


def test_one_device_is_a_mesh_too():
    population = ppl.importance(coin(), num_particles=5)
    shared = ppl.run(population, 0, mesh=jax.make_mesh((1,), ("particles",)))
    assert shared.choices["coin"].tolist() == ppl.run(population, 0).choices["coin"].tolist()


@pytest.mark.slow
def test_a_large_filter_agrees_with_kalman(slow):
    found = slow["large"]
    # Of 16,000 particles; five standard errors leave a false alarm of 6e-7.
    assert abs(found["error"]) < 5
    assert found["parts"] == [[[2000]], [[2000]], [[2000]], [[2000, 50]]]
    assert found["compiled"] == 0
    assert found["predictive"] == [8, 50]
    assert found["summary"].startswith("16,000 particles")


@pytest.mark.slow
def test_no_device_holds_all_trajectories(slow):
    # 1600 particles and 50 steps: populations are gathered for resampling, histories never.
    assert slow["held"]["trajectories=True"] == 1600 * 50 // 8
    assert slow["held"]["trajectories=False"] == 1600
    assert slow["held"]["gathers"] > 0
    assert slow["held"]["gathered bits"] == 0  # each device makes its own


@pytest.mark.slow
def test_devices_share_a_run_in_blocks(slow):
    assert slow["blocks"]["apart"] < 1e-9
    assert slow["blocks"]["parts"] == [[10, 50]]
    rows = slow["blocks"]["rows"]
    assert rows  # nor does a device hold rows of all particles, before and after
    assert all(found == [[50, 10]] for found in rows)


@pytest.mark.slow
def test_tempering_and_chains_share(slow):
    difference, parts = slow["tempered"]
    assert difference < 1e-9
    assert parts == [[10]]
    chains = slow["chains"]
    assert chains["apart"] < 1e-9
    assert chains["parts"] == [[1, 1]]
    assert chains["shape"] == [8, 20]
    assert chains["compiled"] == [1, 0, 0]  # the first block; no later one, nor for another key


@pytest.mark.slow
def test_chains_that_adapt_together_share(slow):
    found = slow["adapted"]
    assert found["apart"] < 1e-9  # of draws, step sizes, lengths of trajectories
    assert found["another key"] > 0.1
    assert found["parts"] == [[1, 1]]
    assert found["shape"] == [8, 20]


@pytest.mark.slow
def test_two_processes_draw_what_one_does(slow):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    one = slow["two"]
    for other in finish(*(start("two", index, port, devices=4) for index in "01")):
        assert (other["processes"], other["here"]) == (2, 4)
        assert other["log_evidence"] == pytest.approx(one["log_evidence"], rel=1e-12)
        assert other["mu"] == [pytest.approx(x, rel=1e-9) for x in one["mu"]]
        assert "on a mesh of several processes" in other["refused"]

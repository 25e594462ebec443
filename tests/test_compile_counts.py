"""Same structure, new data, new key, more draws: nothing is compiled again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.compiling import compilations
from tests.zoo import normal_normal


def data(seed):
    return np.random.default_rng(seed).normal(size=5).astype(np.float32)


def chains(seed, draws=9, init=0.0):
    kernel = ppl.kernels.nuts(max_tree_depth=3)  # equal, but a new object each time
    program = ppl.mcmc(normal_normal(data(seed)), kernel, draws, 5, 2, init={"mu": init})
    return ppl.run(program, seed).draws["mu"]


def predict(seed):
    return ppl.posterior_predictive(normal_normal(data(seed)), {"mu": data(seed)}, seed)["y"]


OPERATIONS = {
    "run": lambda s: ppl.run(ppl.unobserve(normal_normal(data(s))), s),
    "trace": lambda s: ppl.trace(normal_normal(data(s)), s).log_weight,
    "log_density": lambda s: ppl.log_density(normal_normal(data(s)), {"mu": data(s)[0]}),
    "condition": lambda s: ppl.log_density(
        ppl.condition(normal_normal(data(s)), {"mu": data(s)[0]}), {}
    ),
    "reparam": lambda s: ppl.log_density(
        ppl.reparam(normal_normal(data(s)), {"mu": ppl.NonCentred(s / 10)}),
        {"mu_base": data(s)[0]},
    ),
    "scale": lambda s: ppl.log_density(ppl.scale(normal_normal(data(s)), s * 0.1), {"mu": 0.0}),
    "importance": lambda s: ppl.run(ppl.importance(normal_normal(data(s)), 10), s).log_evidence,
    "proposal": lambda s: (
        ppl.run(
            ppl.importance(normal_normal(data(s)), 10, proposal=guide(data(s)[0])), s
        ).log_evidence
    ),
    "mcmc": chains,
    "predictive": predict,
}


@ppl.model
def guide(loc):
    ppl.sample("mu", dist.Normal(loc, 1.0))


def test_the_counter_counts():
    with compilations() as found:
        jax.jit(lambda x: jnp.sin(x) + 0.123)(1.0)
    assert found.count > 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_new_data_and_key_compile_nothing(operation):
    fun = OPERATIONS[operation]
    one = np.asarray(fun(1))
    fun(2)  # anything that only happens once per process
    with compilations() as again:
        three = np.asarray(fun(3))
    assert again.count == 0
    assert not np.array_equal(one, three)


def test_number_of_draws_and_init_compile_nothing():
    assert chains(0, draws=4).shape == (2, 4)
    chains(0, draws=9)
    with compilations() as more:
        assert chains(1, draws=300, init=0.5).shape == (2, 300)
    # Host-side copies and reshapes of results may have programs of their own; the chain has not.
    assert more.count == 0


def test_methods_of_modules_compile_once():
    class Shift(eqx.Module):
        loc: jax.Array

        @ppl.model
        def draw(self, x):
            return ppl.sample("x", dist.Normal(self.loc + x, 1.0))

    def use(v):
        return ppl.run(Shift(jnp.asarray(v)).draw(np.float32(v)), 0)

    use(1.0)
    use(2.0)
    with compilations() as again:
        use(3.0)
    assert again.count == 0


def test_a_model_with_leaf_closures_compiles_once():
    offset = np.arange(3.0, dtype=np.float32)
    m = ppl.model(lambda y: ppl.sample("x", dist.Normal(y + offset, 1.0).to_event(1)))
    ppl.run(m(data(0)[:3]), 0)
    ppl.run(m(data(1)[:3]), 1)
    with compilations() as again:
        ppl.run(m(data(2)[:3]), 2)
    assert again.count == 0


def test_new_shapes_do_compile():
    fun = OPERATIONS["log_density"]
    fun(1)
    with compilations() as other:
        ppl.log_density(normal_normal(np.zeros(6, np.float32)), {"mu": 0.0})
    assert other.count > 0


SCRIPT = """
import jax, sys
hits, misses = [], []
def listen(event, **_):
    (hits if event.endswith("cache_hits") else misses if event.endswith("misses") else []).append(1)
jax.monitoring.register_event_listener(listen)
import numpy as np, ppl
from tests.zoo import normal_normal
folder = ppl.enable_compilation_cache(sys.argv[1])
assert folder.is_dir()
y = np.ones(3, np.float32)
print(float(ppl.log_density(normal_normal(y), {"mu": 0.5})))
print(float(ppl.run(ppl.importance(normal_normal(y), 4), 0).log_evidence))
print("counts", len(hits), len(misses))
"""


def test_compilation_cache_serves_a_second_process(tmp_path):
    root = Path(__file__).resolve().parents[1]
    # Set in two processes with other hash seeds: keys must not depend on them.
    lines = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        environment["JAX_PLATFORMS"] = "cpu"
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "cache")],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            cwd=root,
        )
        lines.append(out.stdout.splitlines())
    (*first, counts), (*second, again) = lines
    assert first == second
    assert int(counts.split()[2]) > 0
    assert int(again.split()[1]) > 0
    assert int(again.split()[2]) == 0, f"first {counts}, second {again}"


def test_default_folder_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    try:
        assert ppl.enable_compilation_cache() == tmp_path / "ppl" / "jax"
        assert (tmp_path / "ppl" / "jax").is_dir()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)

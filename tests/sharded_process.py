"""What programs do on several devices: started by `test_sharding.py`, prints JSON.

With an index and a port it is one of two processes that share a mesh.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unittest.mock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import ppl
import ppl.distributions as dist
from ppl.semantics import blocks as compiled_blocks
from ppl.semantics import outermost
from ppl.semantics.run import _execute
from ppl.semantics.sharding import Sharing, share
from tests.compiling import compilations

KEEP, DRIFT, NOISE, SEEN = 0.9, 1.0, 1.0, 0.5


@ppl.model
def switching(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[x]))
        ppl.sample("y", dist.Bernoulli(jnp.array([0.25, 0.875])[x]), obs=y)
        return x, x

    first = ppl.sample("first", dist.Bernoulli(0.5))
    ppl.factor("tilt", jnp.where(first == 1, 0.3, -0.2))
    return jax.lax.scan(step, first, ys)[1]


@ppl.model
def linear(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(KEEP * x, NOISE))
        ppl.sample("y", dist.Normal(x, SEEN), obs=y)
        return x, None

    return jax.lax.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), ys)[0]


@ppl.model
def normal(ys):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    ppl.sample("y", dist.Normal(mu, 1.0).expand(ys.shape).to_event(1), obs=ys)
    return mu


@ppl.model
def plated():
    with ppl.plate("member", 24):
        return ppl.sample("z", dist.Normal(0.0, 1.0).expand([24, 3]).to_event(1))


@ppl.model
def lonely():
    return ppl.sample("z", dist.Normal(0.0, 1.0))


@ppl.model
def text(context):
    def step(context, _):
        said = ppl.lm.step("step", context, max_tokens=3)
        ppl.factor("a", jnp.where(said.text.tokens == 0, 2.0, -2.0).sum())
        return said.context, None

    return jax.lax.scan(step, context, None, length=3)[0].text.tokens


YS = np.random.default_rng(1).normal(size=50)
FEW = np.array([0.3, 1.2, -0.4])


def kalman(ys: np.ndarray) -> float:
    """Give the log evidence of `linear`."""
    mean, var, log_evidence = 0.0, 1.0, 0.0
    for y in ys:
        mean, var = KEEP * mean, KEEP**2 * var + NOISE**2
        total = var + SEEN**2
        log_evidence -= 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        mean, var = mean + var / total * (y - mean), var * SEEN**2 / total
    return float(log_evidence)


def apart(one: Any, other: Any) -> float:
    """Give the largest difference between the arrays of two results."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))) for a, b in pairs)


def parts(x: Any) -> list[list[int]]:
    """Give the shapes of what lies on the devices, without repetition."""
    assert len({s.device for s in x.addressable_shards}) == 8
    return sorted({s.data.shape for s in x.addressable_shards})


def finite(mesh: Any) -> dict[str, Any]:
    """Count keys for which devices change a choice; then with a bug: all draw the first's lanes."""
    program = ppl.smc(switching(np.array([1, 0, 1, 1])), 16)
    alone = [ppl.run(program, key).choices for key in range(200)]

    def different(keys: int) -> int:
        shared = [ppl.run(program, key, mesh=mesh).choices for key in range(keys)]
        return sum(apart(a, b) > 0 for a, b in zip(alone, shared, strict=False))

    found = {
        "seen": len({np.asarray(x["x"]).tobytes() for x in alone}),
        "different": different(200),
    }
    spread = Sharing.spread

    def repeated(self: Sharing, site: Any, value: Any) -> Any:
        if value.ndim and site.sizes:
            value = jnp.concatenate([value[: value.shape[0] // 8]] * 8)
        return spread(self, site, value)

    _execute.clear_cache()
    with unittest.mock.patch.object(Sharing, "spread", repeated):
        found["different with the bug"] = different(20)
    _execute.clear_cache()
    return found


def simple(mesh: Any) -> dict[str, Any]:
    importance = ppl.importance(normal(FEW), num_particles=80)
    one, other = ppl.run(importance, 3).choices, ppl.run(importance, 3, mesh=mesh).choices
    found = {"importance": [apart(one, other), parts(other["mu"])]}
    one, other = ppl.run(plated(), 3), ppl.run(plated(), 3, mesh=mesh)
    found["plate"] = [apart(one, other), parts(other)]
    other = jax.jit(lambda key: ppl.run(plated(), key, mesh=mesh))(jax.random.key(3))
    found["in jit"] = [apart(one, other), parts(other)]
    data = jax.device_put(np.tile(FEW, 4), NamedSharding(mesh, PartitionSpec("hosts")))
    programs = [ppl.importance(normal(ys), num_particles=80) for ys in (np.tile(FEW, 4), data)]
    one, other = ppl.run(programs[0], 3), ppl.run(programs[1], 3, mesh=mesh)
    found["data on devices"] = [apart(one.choices, other.choices), parts(other.log_weights)]
    return found


def language(mesh: Any) -> dict[str, Any]:
    model = ppl.lm.Llama.random(["a", "b", "ab", "\n", None])
    smc = ppl.smc(text(model.prompt("a", room=9)), num_particles=16)
    one, other = ppl.run(smc, 3), ppl.run(smc, 3, mesh=mesh)
    return {
        "resampled": int(one.steps["resampled"].sum()),
        "difference": apart((one.values, one.log_weights), (other.values, other.log_weights)),
        "parts": parts(other.values),
    }


def large(mesh: Any) -> dict[str, Any]:
    program = ppl.smc(linear(YS), 16_000)
    population = ppl.run(program, 0, mesh=mesh)
    with compilations() as again:
        jax.block_until_ready(ppl.run(program, 1, mesh=mesh))
    choices = population.choices
    laid = [population.log_weights, population.values, choices["start"], choices["x"]]
    return {
        "error": (population.log_evidence - kalman(YS)) / population.log_evidence_se,
        "parts": [parts(x) for x in laid],
        "expected": population.expect("start").value,
        "summary": str(population.summary(["start"])),
        "predictive": population.predictive(1, 8)["y"].shape,
        "compiled": again.count,
    }


def held(mesh: Any) -> dict[str, Any]:
    """Read in compiled code what one device holds, with 1600 particles and 50 steps."""
    found: dict[str, Any] = {"gathered bits": 0}
    for trajectories in (True, False):
        program = ppl.smc(linear(YS), 1600, trajectories=trajectories)
        sharing = share(mesh, "smc", program.structure.jaxpr)
        lowered = _execute.lower(*sharing.place((program, jax.random.key(0))), sharing)
        text = lowered.compile().as_text()
        shapes = re.findall(r"\w\d+\[([\d,]+)\]", text)
        found[f"{trajectories=}"] = max(math.prod(map(int, s.split(","))) for s in shapes)
        gathers = [line for line in text.splitlines() if re.search(r"all-(gather|to-all)", line)]
        found["gathered bits"] += sum("random_bits" in line for line in gathers)
        found["gathers"] = len(gathers)
    return found


def blocks(mesh: Any) -> dict[str, Any]:
    """Run a filter from the host, in blocks that the devices share."""
    program = ppl.smc(linear(YS), 80)
    alone, shared = ppl.run(program, 3), ppl.run(program, 3, mesh=mesh, progress=True)
    rows, found = [], []
    enter = outermost.Passage._enter

    def noting(self: Any, part: Any) -> Any:
        found.append(enter(self, part))
        rows.extend(parts(x) for x in found[-1].rows if x.shape[1:2] == (80,))
        return found[-1]

    with unittest.mock.patch.object(outermost.Passage, "_enter", noting):
        ppl.run(program, 3, mesh=mesh, progress=True)
    rows += [parts(x) for x in found[-1].rows if x.shape[1:2] == (80,)]
    return {
        "apart": apart(alone.choices, shared.choices),
        "parts": parts(shared.choices["x"]),
        "rows": rows,
    }


def tempered(mesh: Any) -> list[Any]:
    walk = ppl.kernels.random_walk(0.5)
    program = ppl.tempered_smc(normal(FEW), num_particles=80, kernel=walk)
    alone, shared = ppl.run(program, 3), ppl.run(program, 3, mesh=mesh)
    return [apart(alone.choices, shared.choices), parts(shared.choices["mu"])]


def chains(mesh: Any) -> dict[str, Any]:
    nuts = ppl.mcmc(normal(FEW), ppl.kernels.nuts(), num_samples=20, num_warmup=10, num_chains=8)
    alone = ppl.run(nuts, 0, progress=False)
    counts, block = [], compiled_blocks._block

    def counting(*args: Any) -> Any:
        with compilations() as here:
            out = block(*args)
        counts.append(here.count)
        return out

    with unittest.mock.patch.object(compiled_blocks, "_block", counting):
        shared = ppl.run(nuts, 0, progress=False, mesh=mesh)
    with compilations() as again:
        ppl.run(nuts, 1, progress=False, mesh=mesh)
    return {
        "apart": apart(alone.draws, shared.draws),
        "parts": parts(shared.state.start),
        "shape": shared["mu"].shape,
        "compiled": [counts[0], sum(counts[1:]), again.count],
    }


def adapted(mesh: Any) -> dict[str, Any]:
    """Chains that stay in step and share what they adapt; then with other numbers for them."""
    kernel = ppl.kernels.chees()
    chees = ppl.mcmc(normal(FEW), kernel, num_samples=20, num_warmup=20, num_chains=8)
    alone, other = (ppl.run(chees, key, progress=False) for key in (0, 1))
    shared = ppl.run(chees, 0, progress=False, mesh=mesh)
    return {
        "apart": apart([alone.draws, alone.stats], [shared.draws, shared.stats]),
        "another key": apart(alone.draws, other.draws),
        "shape": shared["mu"].shape,
        "parts": parts(shared.state.start),
    }


def refused(mesh: Any) -> dict[str, str]:
    three = jax.make_mesh((3,), ("particles",), devices=jax.devices()[:3])
    cases = {
        "particles": (ppl.importance(normal(FEW), num_particles=1000), three),
        "chains": (ppl.mcmc(normal(FEW), ppl.kernels.random_walk(1.0), num_chains=4), mesh),
        "alone": (lonely(), mesh),
    }
    found = {}
    for name, (program, devices) in cases.items():
        try:
            ppl.run(program, 0, mesh=devices)
        except ppl.errors.ArgumentError as error:
            found[name] = str(error)
    return found


def two() -> dict[str, Any]:
    """Run on the devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("particles",))
    population = ppl.run(ppl.smc(linear(YS), 160), 0, mesh=mesh)
    refused = ""
    try:
        if jax.process_count() > 1:
            ppl.run(ppl.smc(linear(YS), 160), 0, mesh=mesh, checkpoint="nowhere")
    except ppl.errors.ArgumentError as error:
        refused = str(error)
    walk = ppl.mcmc(
        normal(FEW), ppl.kernels.random_walk(1.0), num_samples=200, num_warmup=10, num_chains=8
    )
    fitted = ppl.run(walk, 0, progress=False, mesh=mesh)
    return {
        "processes": jax.process_count(),
        "here": len(population.log_weights.addressable_shards),
        "log_evidence": population.log_evidence,
        "mu": fitted["mu"],
        "refused": refused,
    }


def main(task: str, index: str = "", port: str = "") -> None:
    jax.config.update("jax_enable_x64", True)
    if index:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    if task == "two":
        found: Any = two()
    else:
        mesh = jax.make_mesh((4, 2), ("hosts", "devices"))
        slow = [large, held, blocks, tempered, chains, adapted]
        tasks = slow if task == "slow" else [finite, simple, language, refused]
        found = {f.__name__: f(mesh) for f in tasks}
        if task == "slow":
            found["two"] = two()
    print(json.dumps(found, default=lambda x: np.asarray(x).tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])

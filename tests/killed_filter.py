"""Processes that run a particle filter with a checkpoint, and die: `folder kills`, from a test.

So many processes are killed by `kill -9`, each somewhere in its work. With no kills, a process goes
on to the end. Particles are in `whole.npz` and `resumed.npz` of the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ppl  # forking is fine as long as nothing was computed
import ppl.distributions as dist
from ppl.semantics import outermost
from tests.stopping import forked, kill


@ppl.model
def filtered(rows):
    def step(x, row):
        x = ppl.sample("x", dist.Normal(0.9 * x, 0.5))
        ppl.sample("y", dist.Normal(x, 1.0), obs=row)
        return x, None

    return jax.lax.scan(step, jnp.zeros(()), rows)[0]


def run(folder, name, checkpoint=None):
    """Run a filter and write its particles; write to the checkpoint after every call."""
    ppl.enable_compilation_cache(str(folder / "cache"))
    outermost.SAVE_EVERY = outermost.SECONDS = outermost.WORTH = 0.0
    outermost.LONG = outermost.SOME = 0.0  # in pieces without a checkpoint, too
    rows = np.random.default_rng(0).normal(size=400).astype(np.float32)
    found = ppl.run(ppl.smc(filtered(rows), 16), 0, progress=False, checkpoint=checkpoint)
    np.savez(folder / name, x=found.choices["x"], log_weights=found.log_weights)


def main(folder, kills):
    path = folder / "checkpoint"
    if not kills:
        run(folder, "resumed", str(path))
        return
    os.waitpid(forked(lambda: run(folder, "whole")), 0)
    kill(lambda _: run(folder, "early", str(path)), path, "piece", kills, 20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Processes that run chains with a checkpoint, and die: `folder kernel kills`, started by a test.

So many processes are forked and killed by `kill -9`, each somewhere in its work. With no kills, a
process goes on to the end. Draws are in `whole.npz` and `resumed.npz` of the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import ppl  # forking is fine as long as nothing was computed
import ppl.distributions as dist
from ppl.semantics import lanes, suspended
from tests.stopping import forked, kill


@ppl.model
def normal(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("n", 3):
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y)


#: Chains that are not in step and run in parts, and moves from trace to trace.
KERNELS = {
    "flat": lambda: ppl.kernels.nuts(max_tree_depth=3),
    "moves": lambda: ppl.kernels.random_walk(0.5),
}


def run(folder, kernel, name, cores, checkpoint=None):
    """Run chains on so many cores, and write their draws; a part after every step."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    ppl.enable_compilation_cache(str(folder / "cache"))
    suspended.SAVE_EVERY = lanes.SECONDS = 0.0
    y = np.array([0.3, -0.5, 1.2], np.float32)
    program = ppl.mcmc(normal(y), KERNELS[kernel](), 300, 10, 2)
    chains = ppl.run(program, 0, progress=False, checkpoint=checkpoint)
    np.savez(folder / name, mu=chains["mu"], **chains.stats)


def main(folder, kernel, kills):
    path = folder / "checkpoint"
    if not kills:
        run(folder, kernel, "resumed", 1, str(path))
        return
    os.waitpid(forked(lambda: run(folder, kernel, "whole", 2)), 0)
    once = lambda k: run(folder, kernel, "early", 2 - k % 2, str(path))  # noqa: E731
    kill(once, path, "part", kills, 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

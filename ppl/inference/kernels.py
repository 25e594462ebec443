"""The kernels, under the name users know them by: `ppl.kernels`."""

from ppl.inference.hmc import hmc
from ppl.inference.nuts import nuts
from ppl.inference.random_walk import adapted_random_walk, random_walk
from ppl.inference.single_site import single_site

__all__ = ["adapted_random_walk", "hmc", "nuts", "random_walk", "single_site"]

"""The kernels, under the name users know them by: `ppl.kernels`."""

from ppl.inference.conditional import conditional_smc
from ppl.inference.hmc import hmc
from ppl.inference.nuts import nuts
from ppl.inference.pmmh_kernel import pmmh
from ppl.inference.random_walk import adapted_random_walk, random_walk
from ppl.inference.single_site import single_site

__all__ = [
    "adapted_random_walk",
    "conditional_smc",
    "hmc",
    "nuts",
    "pmmh",
    "random_walk",
    "single_site",
]

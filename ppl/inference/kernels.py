"""The kernels, under the name users know them by: `ppl.kernels`."""

from ppl.inference.blockwise import on
from ppl.inference.chees import chees
from ppl.inference.combinators import cycle, mixture, repeat
from ppl.inference.conditional import conditional_smc
from ppl.inference.elliptical_slice import elliptical_slice
from ppl.inference.gibbs import gibbs
from ppl.inference.hmc import hmc
from ppl.inference.involution import involution
from ppl.inference.mala import mala
from ppl.inference.mams import mams
from ppl.inference.mh import mh
from ppl.inference.nuts import nuts
from ppl.inference.pmmh_kernel import pmmh
from ppl.inference.random_walk import adapted_random_walk, random_walk
from ppl.inference.single_site import single_site
from ppl.inference.slice import slice

__all__ = [
    "adapted_random_walk",
    "chees",
    "conditional_smc",
    "cycle",
    "elliptical_slice",
    "gibbs",
    "hmc",
    "involution",
    "mala",
    "mams",
    "mh",
    "mixture",
    "nuts",
    "on",
    "pmmh",
    "random_walk",
    "repeat",
    "single_site",
    "slice",
]

"""Resampling schemes, as distributions over sorted vectors of ancestors.

After resampling particles are exchangeable, so that only the numbers of their offspring count. The
sorted vector of ancestors is their canonical form: C(n + num - 1, num) values in place of n^num.
"""

from ppl.resampling.base import Resampling, offspring
from ppl.resampling.schemes import (
    SCHEMES,
    MultinomialResampling,
    ResidualMultinomialResampling,
    ResidualSystematicResampling,
    SSPResampling,
    StratifiedResampling,
    SystematicResampling,
    scheme,
)

__all__ = [
    "SCHEMES",
    "MultinomialResampling",
    "Resampling",
    "ResidualMultinomialResampling",
    "ResidualSystematicResampling",
    "SSPResampling",
    "StratifiedResampling",
    "SystematicResampling",
    "offspring",
    "scheme",
]

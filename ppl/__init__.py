"""A probabilistic programming language with modular inference, on JAX.

A model is a Python function under `@ppl.model`; a call of it is a `Program`, which denotes an
unnormalised measure. Inference algorithms map programs to programs. `ppl.run` draws.
"""

from typing import Any

from ppl import distributions, kernels
from ppl._cache import enable_compilation_cache
from ppl.errors import PPLError
from ppl.inference.importance import importance
from ppl.inference.mcmc import mcmc
from ppl.inference.particle_gibbs import particle_gibbs
from ppl.inference.pmmh import pmmh
from ppl.inference.pseudo_marginal import pseudo_marginal
from ppl.inference.smc import smc
from ppl.inference.smc2 import smc2
from ppl.inference.smoothing import smooth
from ppl.inference.stream import Stream, stream
from ppl.inference.tempered import tempered_smc
from ppl.interop.blackjax import from_blackjax
from ppl.interop.numpyro import from_numpyro
from ppl.model import Model, model
from ppl.program import Program
from ppl.semantics.chains import Chains
from ppl.semantics.density import log_density
from ppl.semantics.enumerated import enumerate
from ppl.semantics.extract import extract
from ppl.semantics.guided import guided
from ppl.semantics.handlers import condition, do, mask, replay, scale, unobserve
from ppl.semantics.kernel import Kernel, choose, kernel
from ppl.semantics.marginal import marginalize
from ppl.semantics.measure import FiniteMeasure
from ppl.semantics.population import Population
from ppl.semantics.predictive import posterior_predictive, prior_predictive
from ppl.semantics.recover import recover
from ppl.semantics.reparam import NonCentred, Untransformed, reparam
from ppl.semantics.run import run
from ppl.semantics.semirings import expectation
from ppl.semantics.suspension import Suspended, suspend
from ppl.semantics.unconstrained import Unconstrained, unconstrain
from ppl.semantics.weighted import Trace, Weighted, trace, trace_of, traced, weighted
from ppl.statements import deterministic, factor, plate, sample, scope

__version__ = "0.1.0"

_LATER = ("check", "lm", "vi")


def __getattr__(name: str) -> Any:
    """Import `ppl.check`, `ppl.vi` and `ppl.lm` when they are first used: most runs need none."""
    if name in _LATER:
        import importlib

        return importlib.import_module(f"ppl.{name}")
    raise AttributeError(f"module 'ppl' has no attribute {name!r}")


__all__ = [
    "Chains",
    "FiniteMeasure",
    "Kernel",
    "Model",
    "NonCentred",
    "PPLError",
    "Population",
    "Program",
    "Stream",
    "Suspended",
    "Trace",
    "Unconstrained",
    "Untransformed",
    "Weighted",
    "choose",
    "condition",
    "deterministic",
    "distributions",
    "do",
    "enable_compilation_cache",
    "enumerate",
    "expectation",
    "extract",
    "factor",
    "from_blackjax",
    "from_numpyro",
    "guided",
    "importance",
    "kernel",
    "kernels",
    "log_density",
    "marginalize",
    "mask",
    "mcmc",
    "model",
    "particle_gibbs",
    "plate",
    "pmmh",
    "posterior_predictive",
    "prior_predictive",
    "pseudo_marginal",
    "recover",
    "reparam",
    "replay",
    "run",
    "sample",
    "scale",
    "scope",
    "smc",
    "smc2",
    "smooth",
    "stream",
    "suspend",
    "tempered_smc",
    "trace",
    "trace_of",
    "traced",
    "unconstrain",
    "unobserve",
    "weighted",
]

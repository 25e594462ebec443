"""Programmable variational inference: objectives are programs, and so are their gradients."""

from ppl.inference.vi.constructs import marginal, normalize
from ppl.inference.vi.estimators import (
    enum,
    gumbel_softmax,
    ignore,
    implicit,
    mvd,
    reinforce,
    reparam,
    straight_through,
)
from ppl.inference.vi.expectation import expectation, grad_estimate
from ppl.inference.vi.fit import fit
from ppl.inference.vi.fitted import Fit
from ppl.inference.vi.guides import (
    Guide,
    delta,
    flow,
    full_rank,
    guide,
    laplace,
    low_rank,
    mean_field,
    structured,
)
from ppl.inference.vi.handler import estimators
from ppl.inference.vi.meta import annealing
from ppl.inference.vi.mmd import beta_elbo, infovae
from ppl.inference.vi.objective import Objective
from ppl.inference.vi.objectives import (
    ciwae,
    elbo,
    evidence_bound,
    f_divergence,
    forward_kl,
    iwelbo,
    miwae,
    piwae,
    renyi,
    wake_sleep,
)
from ppl.inference.vi.stopping import Plateau

__all__ = [
    "Fit",
    "Guide",
    "Objective",
    "Plateau",
    "annealing",
    "beta_elbo",
    "ciwae",
    "delta",
    "elbo",
    "enum",
    "estimators",
    "evidence_bound",
    "expectation",
    "f_divergence",
    "fit",
    "flow",
    "forward_kl",
    "full_rank",
    "grad_estimate",
    "guide",
    "gumbel_softmax",
    "ignore",
    "implicit",
    "infovae",
    "iwelbo",
    "laplace",
    "low_rank",
    "marginal",
    "mean_field",
    "miwae",
    "mvd",
    "normalize",
    "piwae",
    "reinforce",
    "renyi",
    "reparam",
    "straight_through",
    "structured",
    "wake_sleep",
]

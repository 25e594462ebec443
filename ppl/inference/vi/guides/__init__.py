"""Guides: families of programs that draw what a model draws, with parameters to be learned."""

from ppl.inference.vi.guides.base import Guide, guide
from ppl.inference.vi.guides.flow import flow
from ppl.inference.vi.guides.laplace import laplace
from ppl.inference.vi.guides.normal import full_rank, low_rank, structured
from ppl.inference.vi.guides.sitewise import delta, mean_field

__all__ = [
    "Guide",
    "delta",
    "flow",
    "full_rank",
    "guide",
    "laplace",
    "low_rank",
    "mean_field",
    "structured",
]

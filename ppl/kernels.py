"""`ppl.kernels`: The kernels, and what combines them."""

from ppl.inference.kernels import *  # noqa: F403
from ppl.inference.kernels import __all__ as __all__

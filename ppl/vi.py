"""`ppl.vi`: Programmable variational inference."""

from ppl.inference.vi import *  # noqa: F403
from ppl.inference.vi import __all__ as __all__

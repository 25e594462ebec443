"""`ppl.lm`: Steps of language models, and searches over them."""

from ppl.inference.lm import *  # noqa: F403
from ppl.inference.lm import __all__ as __all__

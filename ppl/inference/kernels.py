"""The kernels, under the name users know them by: `ppl.kernels`."""

from ppl.inference.nuts import nuts

__all__ = ["nuts"]

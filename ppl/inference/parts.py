"""Kernels as parts of other kernels."""

from __future__ import annotations

from typing import Any

from ppl._types import pytree
from ppl.errors import ArgumentError, message
from ppl.inference.trace_kernel import TraceKernel
from ppl.semantics.kernel import Kernel
from ppl.semantics.weighted import Trace


def as_kernels(operation: str, *kernels: Any) -> tuple[TraceKernel, ...]:
    """Give kernels of any kind one form, or raise `ArgumentError`."""
    for kernel in kernels or (None,):
        if not isinstance(kernel, Kernel):
            raise ArgumentError(
                message(
                    f"{operation} got {f'the kernel {kernel!r}' if kernels else 'nothing'}",
                    needs="kernels from a trace to a trace",
                    fix="a function under @ppl.kernel, or a call of one of ppl.kernels, such as "
                    "ppl.kernels.nuts()",
                )
            )
    return tuple(k if isinstance(k, TraceKernel) else Plain(k) for k in kernels)


@pytree
class Plain(TraceKernel):
    """A kernel that remembers nothing, such as a `@ppl.kernel` function."""

    kernel: Kernel

    def move(self, trace: Trace) -> Trace:
        """Make the kernel's move."""
        return self.kernel(trace)

    @property
    def _name(self) -> str:
        return self.kernel._name

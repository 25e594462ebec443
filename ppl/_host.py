"""What the host sees of a run: errors of Python functions inside it, by name; and interrupts."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from threadpoolctl import ThreadpoolController

from ppl import _jax

_raised: list[BaseException] = []
_used: list[bool] = []


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a callback raises: XLA hands on no more than its text.

    Args:
        function: a callback.
    """
    _used[:] = [True]

    @functools.wraps(function)
    def remembered(*args: Any) -> Any:
        try:
            return function(*args)
        except BaseException as error:
            _raised.append(error)
            raise

    return remembered


@contextlib.contextmanager
def named_errors() -> Iterator[Callable[[Any], Any]]:
    """Raise what a callback raised in the block. Gives a function that waits for arrays."""
    _raised.clear()
    try:
        yield jax.block_until_ready if _used else lambda tree: tree
    except Exception:
        if _raised:
            error = _raised[0]
            _raised.clear()
            raise error from None
        raise


@contextlib.contextmanager
def undivided(held: bool = True) -> Iterator[None]:
    """Hold Ctrl-C back until the end: what changes together changes, or does not.

    Args:
        held: if False, hold nothing back.
    """
    handler: Any = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (held and main and callable(handler)):
        yield  # no interrupt is raised here, or none is to be held
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])


@contextlib.contextmanager
def blas_in_one_thread(wanted: bool) -> Iterator[None]:
    """Let BLAS use one thread in the block, if that is wanted: in the whole process.

    Where all cores are taken, its threads wait for one another, and its results are those of one
    number of threads.
    """
    if not wanted:
        yield
        return
    with ThreadpoolController().limit(limits=1, user_api="blas"):
        yield


def beside(number: int) -> Callable[..., Any]:
    """Give what calls a function in another thread, with JAX's settings of this one, and waits.

    JAX runs what one thread asks for in turn, and what several ask for side by side.

    Args:
        number: of the thread; 0 is the one that calls.
    """
    if not number:
        return lambda fun, *args: fun(*args)

    def call(fun: Callable[..., Any], *args: Any) -> Any:
        with undivided():  # an interrupt of this thread alone would leave the other at work
            return _thread(number).submit(_jax.with_settings(fun), *args).result()

    return call


@functools.cache
def _thread(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, f"ppl-{number}")

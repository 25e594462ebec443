"""Named errors. Each says what was passed, what is needed, why, and the call that mends it."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar


class PPLError(Exception):
    """The root of every error this library raises on purpose."""


class AddressError(PPLError, KeyError):
    """An address is unknown, missing, or used twice."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ObservationError(PPLError, ValueError):
    """A value does not fit the distribution that is to have produced it."""


class DistributionError(PPLError, ValueError):
    """A distribution's parameters are outside their domain, or it cannot do what is asked."""


class ModelError(PPLError, TypeError):
    """A model, or a call of one, is not well formed."""


class OutsideModelError(PPLError, RuntimeError):
    """A statement that only a model can contain was executed outside of one."""


class TracerLeakError(PPLError, RuntimeError):
    """A traced value outlived the call of the model that made it."""


class OpenObservationsError(PPLError, ValueError):
    """An operation that only draws was given a program that also scores."""


class UnsupportedError(PPLError, NotImplementedError):
    """An interpreter cannot give meaning to a construct, and says so."""


class InitializationError(PPLError, ValueError):
    """No starting point with a finite density was found."""


class ArgumentError(PPLError, TypeError):
    """A keyword or setting is unknown or out of range."""


class ResultError(PPLError, ValueError):
    """A stored or computed result cannot be shown, saved or loaded as asked."""


class Interrupted(KeyboardInterrupt):
    """A long run was interrupted by Ctrl-C, and can go on from where it stands.

    It is a `KeyboardInterrupt`, so that `except Exception` does not swallow it.
    """

    def __init__(self, what: str, passage: Any):
        super().__init__(
            f"{what}. `.resume()` of this exception goes on from there, bit for bit; where it was "
            "not caught: import sys; result = sys.last_value.resume()"
        )
        self._passage = passage

    def resume(self, *, progress: bool | None = None) -> Any:
        """Go on, and give what the run would have given.

        Args:
            progress: show a progress bar; None shows one in terminals and notebooks.

        Raises:
            Interrupted: again.
        """
        return self._passage.finish(progress)


def message(what: str, *, needs: str, why: str = "", fix: str = "") -> str:
    """Build a message in the house's order: what was passed; what is needed. Why. Fix."""
    text = f"{what}; needs {needs}."
    if why:
        text += f" {why[0].upper()}{why[1:].rstrip('.')}."
    if fix:
        text += f" Fix: {fix.rstrip('.')}."
    return text


def at(address: str, source: str = "") -> str:
    """Name a site the way every message does: its address and where it stands."""
    return f'"{address}" ({source})' if source else f'"{address}"'


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which known name is closest, and list the known ones."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.3)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    shown = ", ".join(f'"{n}"' for n in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{hint}known: {shown or 'none'}"


def check_addresses(
    operation: str, given: Iterable[str], known: Mapping[str, object] | Iterable[str]
) -> None:
    """Raise `AddressError` for the first given address that is not a known one."""
    names = list(known)
    for address in given:
        if address not in names:
            raise AddressError(
                message(
                    f'{operation} got unknown address "{address}"',
                    needs="addresses of the program",
                    why=suggest(address, names),
                    fix="print(program) lists every address",
                )
            )


P = ParamSpec("P")
R = TypeVar("R")


def named_keywords(fun: Callable[P, R]) -> Callable[P, R]:
    """Make an unknown keyword an `ArgumentError` that suggests the right one."""
    known = list(inspect.signature(fun).parameters)

    @functools.wraps(fun)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise ArgumentError(
                    message(
                        f"{fun.__name__} got the unknown keyword {name}={kwargs[name]!r}",
                        needs="one of its own keywords",
                        why=suggest(name, known),
                        fix=f"{fun.__name__}({', '.join(known)})",
                    )
                )
        return fun(*args, **kwargs)

    return checked

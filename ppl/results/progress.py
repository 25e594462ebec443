"""A progress bar that shows itself only to people and never disturbs a run."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from types import TracebackType
from typing import Any, Protocol

_INTERVAL = 0.1  # seconds between two changes of the figures beside the bar


class _Bar(Protocol):
    disable: bool

    def update(self, n: float) -> Any: ...
    def set_postfix(self, ordered_dict: Any, refresh: bool) -> None: ...
    def close(self) -> None: ...


class Progress:
    """A bar to be used in a `with` statement; made by `progress`.

    A display that fails (a closed terminal, a broken widget) ends the display and not the run.
    Exceptions raised inside the `with`, an interrupt included, close the bar and go on.
    """

    def __init__(self, bar: _Bar | None) -> None:
        self._bar = bar
        self._postfix: dict[str, Any] = {}
        self._shown_at = 0.0

    @property
    def enabled(self) -> bool:
        """Whether anything is shown; figures that cost time need not be computed otherwise."""
        return self._bar is not None

    def advance(self, n: int = 1, **postfix: Any) -> None:
        """Count n more steps done, and show figures beside the bar.

        Args:
            n: number of steps.
            postfix: figures by name; they stay until given again.
        """
        if self._bar is None:
            return
        try:
            if postfix:
                self._postfix.update(postfix)
                now = time.monotonic()
                if now - self._shown_at > _INTERVAL:
                    self._shown_at = now
                    self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.update(n)
        except Exception:
            self._abandon()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is None:
            return
        try:
            if self._postfix:
                self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.close()
        except Exception:
            self._abandon()
        self._bar = None

    def _abandon(self) -> None:
        """Give the bar up, in silence: closing it may fail as writing to it did."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.disable = True  # or its destructor would write once more


def progress(
    enabled: bool | None, total: int | None, label: str, patience: float = 0.0
) -> Progress:
    """Make a progress bar.

    Args:
        enabled: whether to show it; None shows it in a terminal or a notebook, and nowhere else.
        total: number of steps; None if nobody knows.
        label: what the steps are.
        patience: seconds after which the bar is first shown.
    """
    notebook = _in_notebook()
    if not (_in_terminal() or notebook if enabled is None else enabled):
        return Progress(None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm warns where a notebook has no widgets
            if notebook:
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm
            known = shutil.get_terminal_size((0, 0)).columns > 0
            width = None if known else 80
            look = {"leave": True, "dynamic_ncols": known, "ncols": width, "delay": patience}
            bar = tqdm(total=total, desc=label, **look)
        return Progress(bar)
    except Exception:  # whatever a display can raise
        return Progress(None)


def _in_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # no stderr, or a closed one
        return False


def _in_notebook() -> bool:
    """Say whether this is a notebook kernel, without importing IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(cls.__name__ == "ZMQInteractiveShell" for cls in type(shell).__mro__)

from __future__ import annotations

import io
import subprocess
import sys
import types

import pytest

from ppl.results.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise OSError("terminal went away")


@pytest.fixture
def terminal(monkeypatch):
    """Open a screen; in the test itself, because pytest puts its own stream back before it."""

    def open_screen():
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return open_screen


def test_shows_label_count_and_last_figures(terminal):
    screen = terminal()
    with progress(None, 50, "warmup") as bar:
        assert bar.enabled
        for k in range(50):
            bar.advance(1, step_size=k)
        bar.advance(0, accept="0.81")
    shown = screen.getvalue()
    assert "warmup: 100%" in shown
    assert "50/50" in shown
    assert "step_size=49" in shown
    assert "accept=0.81" in shown


def test_off_without_a_terminal_and_on_request(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(None, 3, "draws") as bar:
        assert not bar.enabled
        bar.advance(3)
    assert screen.getvalue() == ""
    with progress(True, 3, "draws") as bar:
        bar.advance(3)
    assert "3/3" in screen.getvalue()


def test_off_on_request(terminal):
    screen = terminal()
    with progress(False, 3, "draws") as bar:
        bar.advance(3, x=1)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_no_usable_stderr_means_off(monkeypatch, stderr):
    screen = io.StringIO()
    screen.close()
    monkeypatch.setattr(sys, "stderr", None if stderr is None else screen)
    with progress(None, 3, "draws") as bar:
        assert not bar.enabled


def test_on_in_a_notebook(monkeypatch):
    class ZMQInteractiveShell:
        pass

    class ColabShell(ZMQInteractiveShell):
        pass

    module = types.SimpleNamespace(get_ipython=ColabShell)
    monkeypatch.setitem(sys.modules, "IPython", module)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(None, 3, "draws") as bar:
        assert bar.enabled
        bar.advance(3)


def test_a_display_that_breaks_does_not_disturb(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken())
    with progress(True, 3, "draws") as bar:
        bar.advance(3)
    assert not bar.enabled


def test_a_display_that_breaks_later_does_not_disturb(terminal, monkeypatch):
    screen = terminal()
    with progress(True, 3, "draws") as bar:

        def fail(text):
            raise OSError("terminal went away")

        monkeypatch.setattr(screen, "write", fail)
        for _ in range(3):
            bar.advance(1, x=1)
    assert not bar.enabled


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_errors_close_the_bar_and_go_on(terminal, error):
    screen = terminal()
    bar = progress(True, 10, "draws")

    def run():
        with bar:
            bar.advance(4)
            raise error

    with pytest.raises(error):
        run()
    assert not bar.enabled
    assert "4/10" in screen.getvalue()
    assert screen.getvalue().endswith("\n")
    bar.advance(1)  # a late call is ignored


def test_import_is_light():
    code = (
        "import sys, ppl.results.progress, ppl.results.storage, ppl.results.arviz\n"
        "import ppl.results.table, ppl.results.plots\n"
        "heavy = {'tqdm', 'matplotlib', 'arviz', 'xarray', 'pandas', 'IPython'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    # The facade imports the rest of the library, which is not what is asked about here.
    stub = "import sys, types; p = types.ModuleType('ppl'); p.__path__ = ['ppl']\n"
    stub += "sys.modules['ppl'] = p\n"
    done = subprocess.run([sys.executable, "-c", stub + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

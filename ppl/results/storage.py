"""Arrays and metadata in one file that holds no code and is written whole or not at all.

The file is a `.npz`: a zip archive of `.npy` members, readable by `numpy.load`, with a member
`manifest.json` that holds the nesting, the types numpy has no name for, and the metadata. Nothing
is pickled. Equal contents give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias, cast
from urllib.parse import quote

import numpy as np

from ppl.errors import ResultError, message
from ppl.results._dtypes import extended_dtype, is_extended

Arrays: TypeAlias = Mapping[str, "np.ndarray | Arrays"]
Loaded: TypeAlias = dict[str, "np.ndarray | Loaded"]

_FORMAT = "ppl.results"
_VERSION = 1
_MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date a zip archive can hold, on every member
_UNREADABLE = (  # what zipfile, zlib, json and numpy raise on bytes they cannot make sense of
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    RuntimeError,
)


def save(
    path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write nested arrays and metadata to a file, replacing it only once all is on disk.

    Args:
        path: used as it is; no suffix is added.
        arrays: dictionaries of arrays, nested to any depth; numbers become 0-dimensional arrays.
            Names may be any strings.
        metadata: what JSON can hold, with strings as keys; tuples come back as lists.

    Raises:
        ResultError: an array of Python objects, a name that is not a string, or metadata that
            JSON cannot hold.
    """
    members: dict[str, np.ndarray] = {}
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "arrays": _plan(arrays, "", members),
        "metadata": _checked_metadata(metadata or {}),
    }
    with _atomic(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_MANIFEST, _EPOCH), json.dumps(manifest))
        for name, array in members.items():
            with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load(path: str | os.PathLike[str]) -> tuple[Loaded, dict[str, Any]]:
    """Read what `save` wrote: the same names, nesting, dtypes, shapes and bits.

    Returns:
        The nested dictionary of arrays, and the metadata.

    Raises:
        FileNotFoundError: there is no file.
        ResultError: the file is damaged, is not one of ours, or is of a newer format.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                manifest = json.loads(archive.read(_MANIFEST))
                _check_format(manifest, path)
                return _restore(manifest["arrays"], archive), manifest["metadata"]
        except ResultError:
            raise
        except _UNREADABLE as error:
            raise ResultError(
                message(
                    f"load could not read {os.fspath(path)!r}",
                    needs="an undamaged file written by save",
                    why=f"{type(error).__name__}: {error}",
                    fix="restore the file from a copy, or run again",
                )
            ) from error


def _check_format(manifest: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    if manifest["format"] != _FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}")
    if manifest["version"] > _VERSION:
        raise ResultError(
            message(
                f"load got format version {manifest['version']} in {os.fspath(path)!r}",
                needs=f"version {_VERSION} or older",
                why="A newer release wrote the file",
                fix="update the checkout that ppl is installed from: git pull",
            )
        )


def _plan(arrays: Arrays, prefix: str, members: dict[str, np.ndarray]) -> dict[str, Any]:
    """Give every array a member of the archive; return the tree of members and dtypes."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise ResultError(
                message(f"save got the name {name!r}", needs="strings as names", fix=f"str({name})")
            )
        member = prefix + _quoted(name)
        if isinstance(value, Mapping):
            tree[name] = {"group": _plan(cast(Arrays, value), member + "/", members)}
        else:
            array = np.asarray(value)
            dtype, stored = _storable(array, name)
            members[member + ".npy"] = stored
            tree[name] = {"member": member + ".npy", "dtype": dtype}
    return tree


def _quoted(name: str) -> str:
    """Make a name one component of a path, readable where it can be; no two become equal."""
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe=" ()+,=@[]")


def _storable(array: np.ndarray, name: str) -> tuple[str, np.ndarray]:
    """View an array of a type that numpy does not name, such as bfloat16, as plain integers."""
    dtype = array.dtype
    if is_extended(dtype) and extended_dtype(dtype.name) == dtype:
        return dtype.name, array.view(f"u{dtype.itemsize}")
    if dtype.hasobject or dtype.kind == "V":
        raise ResultError(
            message(
                f"save got an array of dtype {dtype} under {name!r}",
                needs="numbers, booleans, strings or dates",
                why="Python objects could only be pickled, and a pickle can run code when loaded",
                fix="convert it to an array of numbers, or put it into the metadata",
            )
        )
    return dtype.str, array


def _restore(tree: Mapping[str, Any], archive: zipfile.ZipFile) -> Loaded:
    out: Loaded = {}
    for name, node in tree.items():
        if "group" in node:
            out[name] = _restore(node["group"], archive)
            continue
        with archive.open(node["member"]) as member:
            array = cast(np.ndarray, np.lib.format.read_array(member, allow_pickle=False))
            member.read(1)  # reaching the end is what checks the sum
        if array.dtype.str != node["dtype"]:
            dtype = extended_dtype(node["dtype"])
            if dtype is None or dtype.itemsize != array.dtype.itemsize:
                raise ValueError(f"{name!r} has dtype {array.dtype}, not {node['dtype']}")
            array = array.view(dtype)
        out[name] = array
    return out


def _checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def check(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    refuse(f"the key {key!r}", where)  # JSON would turn 1 into "1"
                check(item, f"{where}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            for k, item in enumerate(value):
                check(item, f"{where}[{k}]")
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            refuse(f"a {type(value).__name__}", where)

    def refuse(what: str, where: str) -> None:
        raise ResultError(
            message(
                f"save got {what} in {where}",
                needs="dicts with string keys, lists, strings, numbers, booleans and None",
                fix="put arrays into `arrays`, and convert the rest with str, int or float",
            )
        )

    copy = dict(metadata)
    check(copy, "metadata")
    return copy


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour that takes the place of `path` if all goes well."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Put the new name on disk too, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Finished completions, in memory and in a file that only grows."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ppl.errors import ResultError, message
from ppl.inference.lm.completions import Completion

_HEADER = {"store": "ppl.lm.OpenAI", "version": 1}
_HEADER_LINE = json.dumps(_HEADER).encode()


class Store:
    """Completions by the identity of their requests.

    **Meaning.** A file of JSON lines: the first says what it is, then each holds one completion. A
    line is appended in a single write, whole or, if the process dies in it, torn; a torn line is
    passed over, and its request asked again. Of two lines for one request the first counts.
    Several processes on one machine may append to one file: no line is lost or mixed with another.
    What another process appends is seen when a store is opened, not later; so a request that two
    processes make at the same time may be asked twice.

    Args:
        path: the file; None keeps completions in memory only.

    Raises:
        ResultError: the file is something else, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self.path = None if path is None else Path(path)
        self._done: dict[str, Completion] = {}
        if self.path is None:
            return
        try:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        except OSError as error:
            raise self._unusable(str(error)) from None
        if lines and not _HEADER_LINE.startswith(lines[0]):
            raise self._unusable("its first line is not a store's")
        if _HEADER_LINE not in lines:  # a new file, or one whose first line is torn
            self._append(_HEADER)
        for number, line in enumerate(lines[1:], 2):
            if line != _HEADER_LINE:
                self._take(line, number)

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, identity: str) -> bool:
        return identity in self._done

    def __getitem__(self, identity: str) -> Completion:
        return self._done[identity]

    def put(self, identity: str, completion: Completion) -> None:
        """Keep a completion.

        Args:
            identity: of its request.
            completion: the completion.

        Raises:
            ResultError: the file cannot be written.
        """
        if self.path is not None:
            fields = dataclasses.asdict(completion)
            tokens = completion.tokens
            if tokens is not None:
                fields["tokens"] = [t if isinstance(t, str) else list(t) for t in tokens]
            self._append({"id": identity, "completion": fields})
        self._done.setdefault(identity, completion)

    def _append(self, record: Any) -> None:
        assert self.path is not None
        line = json.dumps(record).encode() + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            file = os.open(self.path, flags, 0o666)
            try:
                size = os.lseek(file, 0, os.SEEK_END)
                if size:
                    os.lseek(file, size - 1, os.SEEK_SET)
                    if os.read(file, 1) != b"\n":  # what a process left that died here
                        line = b"\n" + line
                if os.write(file, line) != len(line):
                    raise OSError("the disk is full")
            finally:
                os.close(file)
        except OSError as error:
            raise self._unusable(str(error)) from None

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return  # torn
        try:
            fields = record["completion"]
            for name in ("tokens", "log_probs"):
                if fields[name] is not None:
                    fields[name] = tuple(
                        bytes(item) if isinstance(item, list) else item for item in fields[name]
                    )
            self._done.setdefault(record["id"], Completion(**fields))
        except (KeyError, TypeError, ValueError):
            raise self._unusable(f"line {number} is no completion") from None

    def _unusable(self, why: str) -> ResultError:
        return ResultError(
            message(
                f"OpenAI got store={str(self.path)!r}",
                needs="a file that it may write, new or written by it",
                why=why,
                fix='ppl.lm.OpenAI(..., store="completions.jsonl") with a new name',
            )
        )

"""One event loop in a background thread, for all that waits for servers."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    """Something with connections."""

    async def close(self) -> None:
        """Close them."""


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def background(thing: Closable) -> asyncio.AbstractEventLoop:
    """Return the event loop of the background thread; start it if need be.

    A notebook's loop and the thread of a callback are left alone: neither can be waited in.

    Args:
        thing: closed there when the interpreter ends, if it still lives.
    """
    global _loop
    with _lock:
        _open.add(thing)
        if _loop is None:
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_loop.run_forever, name="ppl.lm", daemon=True)
            thread.start()
            atexit.register(_end, _loop, thread)
        return _loop


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close connections before the interpreter ends, for it would complain of open ones."""

    async def close() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for thing in list(_open):
            await thing.close()

    try:
        asyncio.run_coroutine_threadsafe(close(), loop).result(1.0)
    except Exception:
        return  # the thread is a daemon and ends with the process
    loop.call_soon_threadsafe(loop.stop)
    thread.join(1.0)
    if not thread.is_alive():
        loop.close()

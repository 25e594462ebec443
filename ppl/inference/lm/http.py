"""Transport to an HTTP server: one background loop, bounded concurrency, retries with back-off."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import random
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from ppl.errors import ArgumentError, PPLError, UnsupportedError, message
from ppl.inference.lm.background import background

T = TypeVar("T")

#: The longest single wait between attempts, in seconds, and the longest a server may ask for.
LONGEST_BACKOFF, LONGEST_RETRY_AFTER = 30.0, 600.0
#: Answers of an HTTP server that another attempt may mend, besides those from 500.
_PASSING = {408, 409, 425, 429}


class ServerError(PPLError, RuntimeError):
    """A server refused a request, or gave no usable answer to it."""


class RefusedError(Exception):
    """The server refused a request, and would again."""

    def __init__(self, status: int, text: str):
        super().__init__(f"status {status}, {text!r}")
        self.status = status


class UnansweredError(Exception):
    """No attempt had a usable answer."""

    def __init__(self, attempts: int, last: Exception):
        super().__init__(str(last))
        self.attempts = attempts


class PassingError(Exception):
    """A fault that another attempt may mend, and how long the server asks to wait."""

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


class Transport:
    """Requests to one server, made in the background loop.

    Args:
        url: the address that paths are appended to.
        api_key: sent as a bearer token; never shown.
        concurrency: how many requests are open at once.
        timeout: seconds that one attempt may take in all.
        retries: attempts after the first.
        backoff: seconds before the second attempt; doubled from attempt to attempt.

    Raises:
        ArgumentError: the address or a number is not usable.
        UnsupportedError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        concurrency: int,
        timeout: float,
        retries: int,
        backoff: float,
    ):
        self._httpx = _httpx()
        self.url = _checked_url(url)
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("timeout", timeout, 1e-3),
            ("retries", retries, 0),
            ("backoff", backoff, 0.0),
        ):
            if not least <= value < float("inf"):
                raise ArgumentError(
                    message(f"OpenAI got {name}={value!r}", needs=f"a number of at least {least}")
                )
        self.concurrency, self.timeout = int(concurrency), float(timeout)
        self.retries, self.backoff = int(retries), float(backoff)
        self.requests = self.retried = 0
        self._key = None if api_key is None else _checked_key(api_key)
        self._slots = asyncio.Semaphore(self.concurrency)
        self._open_at = 0.0  # before then the server wants no request
        self._client: Any = None
        self.loop = background(self)

    async def ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        """Ask until there is an answer that can be read.

        Args:
            path: appended to the address.
            body: posted as JSON; None asks with GET.
            read: from the decoded JSON to the answer; raises `PassingError` if it is none.

        Raises:
            RefusedError: the server said no in a way that another attempt cannot mend.
            UnansweredError: all attempts failed.
        """
        async with self._slots:  # kept while waiting: a server in trouble gets fewer requests
            attempt = 0
            while True:
                await asyncio.sleep(self._open_at - self.loop.time())
                try:
                    return read(await self._once(path, body))
                except PassingError as error:
                    attempt += 1
                    if attempt > self.retries:
                        raise UnansweredError(attempt, error) from None
                    wait = min(self.backoff * 2.0 ** min(attempt - 1, 60), LONGEST_BACKOFF)
                    if error.wait:
                        # All requests wait; otherwise each of them would be told so in turn.
                        self._open_at = max(self._open_at, self.loop.time() + error.wait)
                self.retried += 1
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))

    async def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        if self._client is None:
            self._client = self._new_client()
        # The standard encoder writes lone surrogates as escapes, which httpx's own cannot.
        content = None if body is None else json.dumps(body).encode()
        self.requests += 1
        try:
            async with asyncio.timeout(self.timeout):  # in all, where httpx limits each read
                response = await self._client.request(
                    "GET" if body is None else "POST", self.url + path, content=content
                )
        except TimeoutError:
            raise PassingError(f"no answer within {self.timeout:g} s") from None
        except self._httpx.RequestError as error:
            raise PassingError(self._shown(f"{type(error).__name__}: {error}")) from None
        if not response.is_success:
            self._raise(response)
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise PassingError(
                f"an answer that is no JSON: {self._shown(response.text)!r}"
            ) from None

    def _raise(self, response: Any) -> None:
        status, text = response.status_code, self._shown(_complaint(response))
        spent_up = status == 429 and "insufficient_quota" in response.text
        if spent_up or (status not in _PASSING and (status < 500 or status == 501)):
            raise RefusedError(status, text)
        wait = _seconds(response.headers.get("retry-after"))
        if wait > LONGEST_RETRY_AFTER:
            raise RefusedError(status, f"{text} (asks to wait {wait:.0f} s)")
        raise PassingError(f"status {status}, {text!r}", wait)

    def _new_client(self) -> Any:
        headers = {"content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        host = urllib.parse.urlsplit(self.url).hostname
        limits = self._httpx.Limits(
            max_connections=self.concurrency, max_keepalive_connections=self.concurrency
        )
        # A proxy of the environment knows nothing of this machine's own servers.
        local = host in {"127.0.0.1", "::1", "localhost"}
        return self._httpx.AsyncClient(
            headers=headers, timeout=None, limits=limits, trust_env=not local
        )

    def _shown(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= 300 else f"{text[:300]}..."

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def __del__(self):
        client = getattr(self, "_client", None)
        if client is not None and self.loop.is_running():
            asyncio.run_coroutine_threadsafe(client.aclose(), self.loop)


# --- Small readers ------------------------------------------------------------------------------


def _httpx() -> Any:
    try:
        import httpx  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnsupportedError(
            message(
                "OpenAI needs httpx, which is not installed",
                needs="the optional library httpx",
                fix='pip install "httpx>=0.27"',
            )
        ) from None
    return httpx


def _checked_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise ArgumentError(
            message(
                f"OpenAI got the address {url!r}",
                needs="the address that /completions is appended to",
                fix='ppl.lm.OpenAI("http://127.0.0.1:8000/v1", model="name")',
            )
        )
    if parts.username or parts.password:
        raise ArgumentError(
            message(
                f"OpenAI got an address with a password for {parts.hostname}",
                needs="an address without one",
                why="addresses are shown in errors, and keys must not be",
                fix="ppl.lm.OpenAI(address, model=name, api_key=key)",
            )
        )
    return url.rstrip("/")


def _checked_key(api_key: str) -> str:
    # What no header can hold would be quoted in an error.
    if not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and api_key):
        raise ArgumentError(
            message("OpenAI got an api_key", needs="a line of printable ASCII", fix="key.strip()")
        )
    return api_key


def _complaint(response: Any) -> str:
    """Find what a server says in an error, wherever it says it."""
    try:
        said = response.json()
    except ValueError:
        return response.text.strip()
    while isinstance(said, dict):
        said = next((said[k] for k in ("error", "message", "detail") if k in said), str(said))
    return str(said)


def _seconds(header: str | None) -> float:
    """Read Retry-After, which is a number of seconds or a date; 0 if it is neither."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(header)
            now = datetime.datetime.now(until.tzinfo or datetime.UTC)
            seconds = (until.replace(tzinfo=now.tzinfo) - now).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return seconds if seconds > 0.0 else 0.0

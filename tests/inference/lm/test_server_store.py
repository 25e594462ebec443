"""`OpenAI` resumes: from a file, after a kill or an interrupt; threads, loops and ends."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ppl.errors import ResultError
from ppl.inference.lm.http import ServerError
from ppl.inference.lm.server import OpenAI
from tests.inference.lm.asking import client, expected, requests
from tests.inference.lm.serving import serving


@pytest.fixture(scope="module")
def plain():
    with serving(stop="reported") as server:
        yield server


# --- Stores -------------------------------------------------------------------------------------


def test_a_store_resumes_at_another_address_and_forgives_a_torn_line(tmp_path):
    path, asked = tmp_path / "store.jsonl", requests(30, logprobs=True)
    with serving(stop="reported", logprobs="chat") as server, client(server, store=path) as c:
        first = c.complete(asked[:20])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # as a process leaves it that dies while it writes
    with serving(stop="reported", logprobs="chat") as server, client(server, store=path) as c:
        got = c.complete(asked)
        assert got[:20] == first  # log-probabilities and bytes to the last bit
        assert c.spent.requests == len(server.stats()["drawn"]) == 11
    with serving() as server, client(server, store=path) as c:
        assert c.complete(asked) == got
        assert server.stats()["drawn"] == {}
        other = client(server, store=path, extra={"top_p": 0.5})  # another law: asked anew
        other.complete(requests(1))
        assert other.spent.requests == 1
    path.write_bytes(whole[:11])  # even in the first line
    with serving() as server, client(server, store=path) as c:
        c.complete(requests(2))
        assert client(server, store=path).complete(requests(2)) == c.complete(requests(2))


def test_two_writers_lose_no_line(plain, tmp_path):
    path = tmp_path / "store.jsonl"
    clients = [client(plain, store=path) for _ in range(2)]
    asked = [requests(60, prompt=prompt) for prompt in ("a", "b")]
    threads = [
        threading.Thread(target=c.complete, args=[some])
        for c, some in zip(clients, asked, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with client(plain, store=path) as c:
        c.complete(asked[0] + asked[1])
        assert c.spent.requests == 0
    for c in clients:
        c.close()


@pytest.mark.parametrize("content", [b"# Notes\n\nMine.\n", b'{"id": 1}\n', b"\xff\x00\n"])
def test_a_file_that_is_no_store_is_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ResultError, match="Its first line is not a store's"):
        OpenAI("http://127.0.0.1:1/v1", model="m", store=path)
    assert path.read_bytes() == content
    with pytest.raises(ResultError, match="No such file"):
        OpenAI("http://127.0.0.1:1/v1", model="m", store=tmp_path / "none" / "store")


PROCESS = """
import sys
from ppl.inference.lm.completions import Request
from ppl.inference.lm.server import OpenAI

client = OpenAI(sys.argv[1], model="table", store=sys.argv[2], concurrency=4)
got = client.complete([Request("x", seed, 5, ("\\n",)) for seed in range(60)])
print(*(one.text.encode().hex() for one in got), client.spent.requests, sep="|")
"""


def test_a_killed_process_resumes_and_pays_at_most_what_was_open(tmp_path):
    path = tmp_path / "store.jsonl"
    with serving(stop="reported", delay=0.02) as server:
        command = [sys.executable, "-W", "error", "-c", PROCESS, server.url, str(path)]
        with subprocess.Popen(command) as process:
            while not path.exists() or path.read_bytes().count(b"\n") < 11:
                assert process.poll() is None
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        done = path.read_bytes().count(b"\n") - 1
        assert 10 <= done < 60
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        drawn = server.stats()["drawn"]
    assert second.stderr == ""  # it ends without a complaint about open connections
    *texts, asked = second.stdout.strip().split("|")
    assert [bytes.fromhex(text).decode() for text in texts] == [
        expected(request) for request in requests(60)
    ]
    assert int(asked) == 60 - done
    assert set(drawn) == {f"{seed}|x" for seed in range(60)}
    assert sum(drawn.values()) <= 60 + 4


def test_an_interrupt_leaves_at_once_and_keeps_what_is_finished(tmp_path):
    path, asked = tmp_path / "store.jsonl", requests(60)
    with serving(stop="reported", delay=0.1) as server:
        c = client(server, store=path, concurrency=2)
        interrupted = []

        def interrupt():
            while path.read_bytes().count(b"\n") < 6:
                time.sleep(0.005)
            interrupted.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            c.complete(asked)
        assert time.monotonic() - interrupted[0] < 1.0
        thread.join()
        time.sleep(0.5)  # long enough for ten more, if they were still being asked
        done = path.read_bytes().count(b"\n") - 1
        assert 5 <= done <= sum(server.stats()["drawn"].values()) <= done + 4
        assert done < 15
        resumed = client(server, store=path)
        assert [one.text for one in resumed.complete(asked)] == list(map(expected, asked))
        assert (resumed.spent.requests, resumed.spent.cached) == (60 - done, done)


# --- Threads and ends ---------------------------------------------------------------------------


def test_it_works_inside_a_running_loop(plain):
    async def cell():
        with client(plain) as c:
            return c.complete(requests(3))

    assert [one.text for one in asyncio.run(cell())] == list(map(expected, requests(3)))


def test_closing_ends_what_another_thread_waits_for():
    with serving(hang=1.0) as server, client(server) as c:
        errors = []

        def wait():
            with pytest.raises(ServerError, match="was closed while it was asking") as info:
                c.complete(requests(2))
            errors.append(info.value)

        thread = threading.Thread(target=wait)
        thread.start()
        while server.stats()["most_open"] < 2:
            time.sleep(0.01)
        c.close()
        thread.join(10.0)
        assert len(errors) == 1


def test_a_client_that_is_forgotten_closes_its_connections(plain):
    c = client(plain)
    c.complete(requests(4))
    loop = c._transport.loop
    del c
    gc.collect()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
    gc.collect()  # a socket left open would warn, and warnings are errors

#!/usr/bin/env python3
"""Both edges of a live server, HTTP's and gRPC's, under requests that are nearly right.

    python fuzz_edges.py target/debug/crossgate [--seconds 600] [--seed N] [--only N]

The server has the built-in model's tokenizer and the plugin `fake`. Request n follows from the seed and n alone, whichever
client sends it: `--only n` sends that one again, and what curl can send is shown as a line for it, with the port that it had.
A run warms up for a fifth of the time; two phases of equal length follow, of as many requests, and what the server holds after
the second is held against what it held after the first.

A failure is a process that ends, a panic in its log, an answer that does not come in time or is not what it says, a status that
says that the mistake is the server's, `/livez` late, or something kept that grows. The statuses that may be are explained at the end.
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import sys
import threading
import time
import urllib.request

from fuzz_grpc import Methods
from fuzz_level import Level, settled
from fuzz_rest import Dialects
from server import serve

ROOT = pathlib.Path(__file__).resolve().parents[3]
EXCHANGES = ROOT / "gateway/tests/dialects/exchanges.json"
KEPT = ROOT / "target/fuzz-edges"
CLIENTS = 8
REQUEST_TIMEOUT_S = 2
# Every answer comes within the server's own bound, and what a busy machine takes beyond it.
ANSWER_S_MAX = REQUEST_TIMEOUT_S + 6
# `/livez` is asked so often, and answers so soon: who asks shares a Python with the clients, and a machine with whoever else.
PROBE_PERIOD_S, PROBE_S_MAX = 0.1, 2.0
FAILURES_MAX = 20
# In a debug build h2 doubts itself when a connection ends with streams open, as clients may have it (hyperium/h2#907); a release
# has no such check, and the connection is gone either way. File and words of the panic.
KNOWN_PANIC = ("/proto/streams/counts.rs", "assertion failed: !self.has_streams()")
WARM_UP_SHARE = 0.2
# Bounds that small bodies reach.
FLAGS = ["--backend", "fake", "--request-timeout", f"{REQUEST_TIMEOUT_S}s", "--body-bytes-max", "1MiB", "--document-bytes-max", "64KiB",
         "--query-bytes-max", "8KiB", "--documents-max", "200", "--requests-max", "64", "--cache-bytes-max", "4MiB", "--log-level", "info"]
WHY = {
    "503": "no room in time for a request that was let in (queue.wait_max), or a model that is not ready",
    "504": "the time that the request, or else the server, allows is over",
    "4": "as 504",
    "13": "gRPC's own word for bytes that are no messages: packed although nobody said so, or not as said, or broken off",
    "14": "as 503",
    "11": "the health service is the library's own, and says so of a message that is too long",
    "left": "the client hung up or gave up",
    "thrown": "bytes that are hardly HTTP/2",
    "timeout": "bytes that are hardly HTTP/1, of which the server awaits the rest",
}


class Run:
    """What clients share: the next request's number, what was seen, what was wrong."""

    def __init__(self, http, grpc_target, seed, sources):
        self.http, self.seed, self.sources = http, seed, sources
        self.addresses = [address_of(http), address_of(grpc_target)]
        self.targets = [http, f"http://{grpc_target}"]
        self.lock, self.next, self.seen, self.failures = threading.Lock(), 0, collections.Counter(), []
        self.slowest_s = 0.0

    def draw(self, number):
        """(which edge, request)"""
        rng = random.Random(f"{self.seed}/{number}")
        edge = int(rng.random() < 0.4)
        return edge, self.sources[edge].draw(rng)

    def one(self, number):
        edge, request = self.draw(number)
        started = time.monotonic()
        try:
            answer = request.run(self.addresses[edge], ANSWER_S_MAX)
        except OSError as error:
            self.fail(number, edge, request, f"no connection: {error}", None)
            return None
        took_s = time.monotonic() - started
        wrong = request.wrong(answer) or self.wrong_time(request, answer, took_s)
        with self.lock:
            self.seen[("HTTP  ", "gRPC  ")[edge] + answer.kind()] += 1
            self.slowest_s = max(self.slowest_s, took_s)
        if wrong:
            self.fail(number, edge, request, wrong, answer)
        return answer

    @staticmethod
    def wrong_time(request, answer, took_s):
        """A deadline passes no sooner than its client, or else the server, said; one of a client may pass at once. No
        answer comes later than it may."""
        if took_s > ANSWER_S_MAX:
            return f"took {took_s:.1f} s"
        is_late = answer.status == 504 or answer.grpc_status == 4
        if is_late and request.seconds_asked() is None and took_s < 0.9 * REQUEST_TIMEOUT_S:
            return f"the deadline passed after {took_s:.3f} s, and nobody asked for that"
        return ""

    def fail(self, number, edge, request, wrong, answer):
        KEPT.mkdir(parents=True, exist_ok=True)
        body = KEPT / f"{self.seed}-{number}.body"
        body.write_bytes(request.body if request.wire is None else request.wire)
        how = f"(bytes as they were sent: nc {' '.join(map(str, self.addresses[edge]))} < {body})" if request.wire is not None else \
            request.curl(self.targets[edge], body)
        text = f"request {number}: {wrong}\n  {how}\n  or: --seed {self.seed} --only {number}"
        if answer is not None and answer.body:
            text += f"\n  {answer.body[:300]!r}"
        with self.lock:
            self.failures.append(text)
        print(f"FAILED  {text}", flush=True)

    def phase(self, name, is_over):
        """Clients until it is over, by (seconds since its start, requests in it). Returns the requests in it."""
        started, first = time.monotonic(), self.next

        def client():
            while len(self.failures) < FAILURES_MAX:
                with self.lock:
                    number = self.next
                    if is_over(time.monotonic() - started, number - first):
                        return
                    self.next += 1
                self.one(number)

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"        {name}: {self.next - first} requests in {time.monotonic() - started:.0f} s", flush=True)
        return self.next - first


def address_of(url):
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


@contextlib.contextmanager
def probe(http, failures):
    """Asks `/livez` all the time; yields a list whose last element is the longest that it took."""
    slowest, done = [0.0], threading.Event()

    def ask():
        while not done.wait(PROBE_PERIOD_S):
            started = time.monotonic()
            try:
                with urllib.request.urlopen(f"{http}/livez", timeout=PROBE_S_MAX) as answer:
                    answer.read()
                slowest.append(max(slowest[-1], time.monotonic() - started))
            except OSError as error:
                failures.append(f"/livez: {error}")

    prober = threading.Thread(target=ask, daemon=True)
    prober.start()
    yield slowest
    done.set()
    prober.join()


def explain(seen):
    for kind, n in sorted(seen.items()):
        print(f"        {n:>8}  {kind}  {WHY.get(kind.split()[1], '')}", flush=True)


def judge_log(path, failures):
    lines = re.sub(r"\x1b\[[0-9;]*m", "", path.read_text(errors="replace")).splitlines()
    found = []
    for line, next_line in zip(lines, [*lines[1:], ""]):
        if "panicked" in line and KNOWN_PANIC[0] in line and KNOWN_PANIC[1] in next_line:
            continue
        if "panicked" in line or " ERROR " in line:
            found.append(f"in the log: {line[:300]} {next_line[:300]}")
    failures += found[:FAILURES_MAX]


def phases(run, process, seconds):
    """Warms up, then does the same twice; the levels after both."""
    share = (1 - WARM_UP_SHARE) / 2 * seconds
    run.phase("warm-up", lambda passed_s, _: passed_s >= seconds - 2 * share)
    start = settled(run.http, process.pid)
    n = run.phase("first phase", lambda passed_s, _: passed_s >= share)
    first = settled(run.http, process.pid)
    run.phase("second phase", lambda _, sent: sent >= n)
    second = settled(run.http, process.pid)
    for name, level in [("after the warm-up", start), ("after the first phase", first), ("after the second phase", second)]:
        print(f"        {name}: {level}", flush=True)
    return first, second


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crossgate")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one request to send again")
    arguments = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    log = KEPT / "server.log"
    # What the server's allocator has free it gives back at once, so that what is resident is what is held.
    os.environ["MIMALLOC_PURGE_DELAY"] = "0"
    print(f"        seed {arguments.seed}, {arguments.seconds:.0f} s; log and failures in {KEPT}", flush=True)
    with log.open("wb") as lines, serve(arguments.crossgate, *FLAGS, log=lines) as (http, target, _, process):
        with urllib.request.urlopen(f"{http}/openapi.json") as answer:
            api = json.load(answer)
        run = Run(http, target, arguments.seed, [Dialects(json.loads(EXCHANGES.read_text()), api), Methods(target)])
        if arguments.only is not None:
            print(run.one(arguments.only))
        else:
            with probe(http, run.failures) as slowest:
                first, second = phases(run, process, arguments.seconds)
            explain(run.seen)
            print(f"        slowest answer {run.slowest_s:.2f} s (<= {ANSWER_S_MAX}), /livez {slowest[-1]:.3f} s (<= {PROBE_S_MAX})")
            run.failures += Level.grown(first, second)
        if process.poll() is not None:
            run.failures.append(f"the server ended: {process.returncode}")
    judge_log(log, run.failures)
    if run.failures:
        sys.exit("\nFAILED:\n" + "\n".join(run.failures))
    print("ok      every request had an answer, and nothing is left of them")


if __name__ == "__main__":
    main()

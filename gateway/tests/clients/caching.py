"""Scenarios of the cache: popular pairs, hot pairs, servers that share hits over Redis. See overload.py."""
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

from measure import ROOT, client_share, counters, lines_of, quantiles, say

ZIPF_TOLERANCE = 0.10
HOT_FACTOR_MIN = 5
DISTRIBUTED = ("--distributed", "--redis-url")
# Each state of Redis lasts this long under load.
STATE_S = 5


def needs(bench, *flags):
    """False, and a failure, where the server lacks a flag that the scenario is about."""
    missing = [flag for flag in flags if not bench.knows(flag)]
    if missing:
        bench.check(f"this server has {', '.join(missing)}", False)
    return not missing


def drawn(bench, requests, documents):
    """A workload whose requests share documents by Zipf's law."""
    path = str(bench.folder / "drawn.jsonl")
    subprocess.run([bench.loadtest, "draw", "--workload", bench.workload, "--requests", str(requests), "--documents",
                    str(documents), "--zipf", "1.0", "--seed", "7", "--output", path], check=True)
    return path


def zipf(bench, seconds):
    """Throughput cached / uncached beside 1 / (share of rows that were computed)."""
    if not needs(bench, "--cache"):
        return
    lines = lines_of(bench.workload)
    different = len({document for line in lines for document in line["documents"]})
    workload = drawn(bench, 4000, min(32, max(1, different // 4)))
    load = ["--clients", 8, "--duration", f"{min(seconds, 10)}s", "--warmup", "1s"]
    agreement = []
    with bench.serve() as (cold, _, _, _):
        for _ in range(bench.rounds):
            uncached = bench.run(cold, *load, "--require-no-cache-hits", workload=workload)
            # A new server each time: its cache fills as it did before.
            with bench.serve(cache=True) as (warm, _, _, _):
                cached = bench.run(warm, *load, workload=workload)
            computed = cached["server"]["rows"] / max(1, cached["pairs"])
            factor = cached["pairs_per_s"] / uncached["pairs_per_s"]
            agreement.append(factor * computed)
            say(f"{uncached['pairs_per_s']:.0f} pairs/s uncached, {cached['pairs_per_s']:.0f} cached: {factor:.2f} times; "
                f"hit rate {cached['cache_hit_rate'] * 100:.1f} %, {computed * 100:.1f} % of rows computed predict "
                f"{1 / max(computed, 1e-9):.2f}; {client_share(cached)}")
    bench.check_ratio("speed-up by the cache / what its hit rate predicts", agreement, 1 - ZIPF_TOLERANCE, 1 + ZIPF_TOLERANCE)


def hot(bench, seconds):
    """Every pair cached, beside the tokenizer alone on the same requests."""
    if not needs(bench, "--cache"):
        return
    requests = len(lines_of(bench.workload))
    factors = []
    with bench.serve(cache=True) as (http, _, _, _):
        bench.run(http, "--requests", requests, "--clients", 4, "--warmup", "0s")
        for _ in range(bench.rounds):
            report = bench.run(http, "--clients", 8, "--duration", f"{min(seconds, 8)}s", "--warmup", "1s")
            tokenized = tokenizer_pairs_per_s(bench)
            factors.append(report["pairs_per_s"] / tokenized)
            say(f"{report['pairs_per_s']:.0f} pairs/s hot ({quantiles(report['latency_us'])}), {tokenized:.0f} tokenized: "
                f"{factors[-1]:.2f} times; hit rate {report['cache_hit_rate'] * 100:.2f} %; {client_share(report)}")
    bench.check_ratio("hot pairs/s / what the tokenizer alone can do", factors, low=HOT_FACTOR_MIN)


def tokenizer_pairs_per_s(bench):
    result = subprocess.run([bench.crossgate, "bench", "--stage", "tokenize", "--workload", bench.workload, "--json", "--rounds", "9",
                             *bench.flags], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["pairs_per_s"]


# --- Redis ---

def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_redis(port):
    program = ROOT / "target/debian/run"
    process = subprocess.Popen([program, "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                                "--appendonly", "no"], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as link:
            link.sendall(b"PING\r\n")
            if link.recv(16).startswith(b"+PONG"):
                return process
        time.sleep(0.05)
    process.kill()
    sys.exit("FAILED: redis-server does not answer")


def end(process):
    # A stopped process does not hear anything else.
    process.kill()
    process.wait(10)


def redis(bench, _):
    if not needs(bench, *DISTRIBUTED):
        return
    subprocess.run([ROOT / "deploy/debian.sh", "redis-server"], check=True)
    port = free_port()
    server = start_redis(port)
    flags = ["--distributed", "--redis-url", f"redis://127.0.0.1:{port}"]
    try:
        with bench.serve(*flags, cache=True) as (first, _, _, _), bench.serve(*flags, cache=True) as (second, _, _, _):
            share_hits(bench, first, second)
            server = trouble(bench, first, second, server, port)
    finally:
        end(server)


def share_hits(bench, first, second):
    once = ["--requests", len(lines_of(bench.workload)), "--clients", 2, "--warmup", "0s"]
    bench.run(first, *once)
    wait_for_writes(first)
    cache = bench.run(second, *once)["server"]["cache"] or {"hits": 0, "hits_distributed": 0}
    looked_up = sum(cache.values())
    bench.check(f"of {looked_up} rows that the first server computed, the second found {cache['hits_distributed']} in Redis",
                looked_up > 0 and cache["hits_distributed"] + cache["hits"] >= 0.99 * looked_up and cache["hits_distributed"] > 0)


def wait_for_writes(http):
    """Writing to Redis is behind the answer: until the server's counters of Redis stand still."""
    last, until = None, time.monotonic() + 5
    while time.monotonic() < until:
        now = {name: value for name, value in counters(http).items() if "redis" in name or "distributed" in name}
        if now == last:
            return
        last = now
        time.sleep(0.3)


def trouble(bench, first, second, server, port):
    """Load on both servers while Redis is hung, goes on, is killed and is started again; returns the last one."""
    workload = drawn(bench, 8000, min(16, len({text for line in lines_of(bench.workload) for text in line["documents"]})))
    load = ["--clients", 4, "--warmup", "0s", "--duration", f"{5 * STATE_S}s", "--deadline", "5s"]
    runs = [bench.start(http, *load, workload=workload) for http in (first, second)]
    time.sleep(STATE_S)
    server.send_signal(signal.SIGSTOP)
    time.sleep(STATE_S)
    server.send_signal(signal.SIGCONT)
    time.sleep(STATE_S)
    end(server)
    time.sleep(STATE_S)
    server = start_redis(port)
    for name, run in zip(("first", "second"), runs):
        report = bench.finish(run)
        failed = report["sent"] - report["outcomes"]["ok"]
        cache = report["server"]["cache"]
        say(f"{name} server: {report['outcomes']['ok']} ok, {quantiles(report['latency_us'])}; cache {cache}; {client_share(report)}")
        bench.check(f"{name} server: {failed} of {report['sent']} requests failed with Redis hung, gone and back", failed == 0)
    return server

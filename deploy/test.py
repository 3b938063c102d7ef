#!/usr/bin/env python3
"""Runs what this folder deploys: two servers over one Redis behind nginx, and Prometheus.

    python deploy/test.py [--crossgate target/release/crossgate] [--loadtest target/release/loadtest]

The files are those of this folder; only addresses are put in their place. The programs are Debian's, unpacked below
target/debian by debian.sh. Everything listens on loopback, on free ports, and is ended at the end. About a minute.
"""
import argparse
import contextlib
import getpass
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "gateway/tests/clients"))

from caching import DISTRIBUTED, free_port, share_hits  # noqa: E402
from measure import Bench, client_share, counters, quantiles, say, total  # noqa: E402
from server import serve  # noqa: E402

PACKAGES = ("redis-server", "nginx", "prometheus")
# Each of two servers gets about half of the requests; less than this share is a balancer that does not balance.
SHARE_MIN = 0.25
WAIT_S = 20
# nginx outside of what is deployed: the `http` block and its files.
NGINX = """
user {user};
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/crossgate.conf;
}}
"""


class Cluster:
    """Two servers on fixed ports, that can be ended and started again."""

    def __init__(self, bench, stack, flags):
        self.bench, self.stack, self.flags = bench, stack, flags
        self.ports = [(free_port(), free_port()) for _ in range(2)]
        self.running = [None, None]
        for number in range(2):
            self.start(number)

    def start(self, number):
        http, grpc = self.ports[number]
        server = serve(self.bench.crossgate, "--port", str(http), "--grpc-port", str(grpc), *self.flags)
        self.running[number] = self.stack.enter_context(server)[3]

    def http(self, number):
        return f"http://127.0.0.1:{self.ports[number][0]}"

    def end(self, number, with_signal):
        self.running[number].send_signal(with_signal)
        self.running[number].wait(WAIT_S)


def substituted(path, into, addresses):
    """Writes a deployed file with other addresses; each must stand in it."""
    text = path.read_text()
    for address, other in addresses.items():
        pattern = rf"(?<![\w.:-]){re.escape(address)}(?![\w:-])"
        text, count = re.subn(pattern, other, text)
        if not count:
            sys.exit(f"FAILED: {path} does not name {address}")
    into.write_text(text)


def start(stack, *command):
    """A program of Debian's, ended with the test."""
    process = subprocess.Popen([ROOT / "target/debian/run", *map(str, command)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)

    def end():
        process.kill()
        process.wait(WAIT_S)

    stack.callback(end)
    return process


def wait_until(what, happened):
    """Asks again and again; an exception is a no."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if happened():
                return
        time.sleep(0.1)
    sys.exit(f"FAILED: {what}: not within {WAIT_S} s")


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def ask(url, body, headers=()):
    """Status and headers of a POST, whatever the status."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **dict(headers)})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def start_redis(stack, folder):
    port = free_port()
    start(stack, "redis-server", HERE / "redis/redis.conf", "--port", port, "--bind", "127.0.0.1", "--dir", folder)
    command = [ROOT / "target/debian/run", "redis-cli", "-p", str(port), "ping"]
    wait_until("Redis answers", lambda: subprocess.run(command, capture_output=True, check=False).stdout == b"PONG\n")
    return port


def start_nginx(stack, folder, cluster):
    http, grpc = free_port(), free_port()
    addresses = {"8000;": f"127.0.0.1:{http};", "50051 http2;": f"127.0.0.1:{grpc} http2;"}
    for number, (to_http, to_grpc) in enumerate(cluster.ports, 1):
        addresses[f"crossgate-{number}:8000"] = f"127.0.0.1:{to_http}"
        addresses[f"crossgate-{number}:50051"] = f"127.0.0.1:{to_grpc}"
    substituted(HERE / "nginx/crossgate.conf", folder / "crossgate.conf", addresses)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user=getpass.getuser()))
    command = ["nginx", "-p", folder, "-e", folder / "nginx.log", "-c", folder / "nginx.conf"]
    process = start(stack, *command)
    # Asked to stop, it stops its workers too.
    stack.callback(lambda: (process.terminate(), process.wait(WAIT_S)))
    wait_until("nginx answers", lambda: get(f"http://127.0.0.1:{http}/readyz"))
    return f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}"


def start_prometheus(stack, folder, cluster):
    port = free_port()
    addresses = {f"crossgate-{number}:8000": f"127.0.0.1:{http}" for number, (http, _) in enumerate(cluster.ports, 1)}
    substituted(HERE / "prometheus/prometheus.yml", folder / "prometheus.yml", addresses)
    start(stack, "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
          f"--web.listen-address=127.0.0.1:{port}")

    def query(text):
        """The values of an instant query, by instance."""
        answer = json.loads(get(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(text)}"))
        return {row["metric"].get("instance", ""): float(row["value"][1]) for row in answer["data"]["result"]}

    return query


def passes_on(bench, http):
    """What nginx must not lose, and must not let through."""
    body = {"query": "q", "documents": ["a", "b"]}
    _, headers = ask(f"{http}/rerank", body, {"x-request-id": "of-the-client"})
    bench.check("a request's own id comes back", headers["x-request-id"] == "of-the-client")
    _, headers = ask(f"{http}/rerank", body)
    bench.check("a request without an id gets one", bool(headers["x-request-id"]))
    # Over nginx's own default of 1 MiB, of what a document may be below the servers' bound.
    status, _ = ask(f"{http}/rerank", {"query": "q", "documents": ["x " * 50_000] * 40})
    bench.check(f"a body of 4 MB passes ({status})", status == 200)
    status, _ = ask(f"{http}/rerank", {"query": "q", "documents": []})
    bench.check(f"a server's own refusal passes ({status})", status == 400)


def spreads(bench, cluster, http, grpc):
    pages = [page for number in range(2) for page in ("--metrics-url", f"{cluster.http(number)}/metrics")]
    for name, target in (("HTTP", ["--url", http]), ("gRPC", ["--grpc", grpc])):
        before = [total(counters(cluster.http(number)), "crossgate_score_requests_total") or 0 for number in range(2)]
        report = bench.finish(bench.start_at(target, "--clients", 4, "--duration", "4s", "--warmup", "0s", *pages))
        after = [total(counters(cluster.http(number)), "crossgate_score_requests_total") for number in range(2)]
        served = [now - then for now, then in zip(after, before)]
        say(f"{name}: {report['requests_per_s']:.0f} requests/s, {quantiles(report['latency_us'])}; {client_share(report)}")
        good = all_ok(report) and min(served) >= SHARE_MIN * sum(served)
        bench.check(f"over {name} {report['sent']} requests succeed, {served[0]:.0f} and {served[1]:.0f} on the two servers", good)


def all_ok(report):
    return report["outcomes"]["ok"] == report["sent"] > 0


def survives(bench, cluster, http):
    """One server drains under load and comes back; then the other is killed and comes back."""
    for what, number, with_signal in (("drained", 0, signal.SIGTERM), ("killed", 1, signal.SIGKILL)):
        run = bench.start(http, "--clients", 4, "--duration", "8s", "--warmup", "0s", "--metrics-url", "none")
        time.sleep(2)
        cluster.end(number, with_signal)
        time.sleep(2)
        cluster.start(number)
        report = bench.finish(run)
        failed = report["sent"] - report["outcomes"]["ok"]
        say(f"{report['requests_per_s']:.0f} requests/s, {quantiles(report['latency_us'])}")
        bench.check(f"a server is {what} under load: {failed} of {report['sent']} requests fail", all_ok(report))


def is_scraped(bench, query):
    wait_until("Prometheus has scraped both servers", lambda: list(query("up").values()) == [1, 1])
    bench.check("Prometheus has both servers up", True)
    # A second passes until the last requests are seen.
    wait_until("requests are counted", lambda: len(query("sum by (instance) (crossgate_requests_total) > 0")) == 2)
    counted = query("sum by (instance) (crossgate_requests_total)")
    bench.check(f"Prometheus counts requests of both: {counted}", len(counted) == 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crossgate", default=str(ROOT / "target/release/crossgate"))
    parser.add_argument("--loadtest", default=str(ROOT / "target/release/loadtest"))
    arguments = parser.parse_args()
    subprocess.run([HERE / "debian.sh", *PACKAGES], check=True)
    bench = Bench(arguments.crossgate, arguments.loadtest)
    distributed = all(map(bench.knows, DISTRIBUTED))
    with contextlib.ExitStack() as stack:
        folder = bench.folder
        redis = start_redis(stack, folder)
        flags = ["--distributed", "--redis-url", f"redis://127.0.0.1:{redis}"] if distributed else []
        cluster = Cluster(bench, stack, flags)
        query = start_prometheus(stack, folder, cluster)
        http, grpc = start_nginx(stack, folder, cluster)
        if distributed:
            share_hits(bench, cluster.http(0), cluster.http(1))
        else:
            say(f"NOT TESTED: hits shared over Redis, for this server has no {' '.join(DISTRIBUTED)}")
        passes_on(bench, http)
        spreads(bench, cluster, http, grpc)
        is_scraped(bench, query)
        survives(bench, cluster, http)
        wait_until("Prometheus sees both servers again", lambda: list(query("up").values()) == [1, 1])
    if bench.failed:
        sys.exit("\nFAILED:\n  " + "\n  ".join(bench.failed))
    print("\nwhat is deployed works")


if __name__ == "__main__":
    main()

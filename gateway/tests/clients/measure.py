"""What the scenarios beside this file share: a server's flags, the load tester's runs, memory, verdicts."""
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from server import serve

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "loadtest/peers"))

from figures import interval, median  # noqa: E402

SAMPLE = ROOT / "loadtest/workloads/sample.jsonl"
# How long the load tester may take beyond what it was asked for: warm-up, last answers, a busy machine.
RUN_GRACE_S = 60
CLIENTS = (4, 8, 16)
# Before and after the load that is held against it; each of them is a run for each number of clients.
CAPACITY_ROUNDS = 3


class Bench:
    """The programs, the model and the workload of one call of a scenario, and what it found wrong."""

    def __init__(self, crossgate, loadtest, workload=SAMPLE, flags=(), rounds=7):
        self.crossgate, self.loadtest = crossgate, loadtest
        self.workload, self.flags, self.rounds = str(workload), list(flags), rounds
        self.failed = []
        # Gone with this object, at the end of the program.
        self.temporary = tempfile.TemporaryDirectory(prefix="crossgate-")
        self.folder = pathlib.Path(self.temporary.name)
        self.help = subprocess.run([crossgate, "serve", "--help"], capture_output=True, text=True, check=True).stdout

    def knows(self, flag):
        """Whether the server has this flag."""
        return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", self.help) is not None

    def serve(self, *flags, cache=False):
        """A server with the scenario's own flags; cache and coalescing are off unless asked for."""
        off = []
        for flag in ("--cache", "--coalesce"):
            if not cache and self.knows(flag):
                off.append(f"{flag}=off")
        return serve(self.crossgate, *off, *self.flags, *flags)

    def start(self, http, *arguments, workload=None):
        """Starts a run of the load tester over HTTP; `finish` waits for it."""
        return self.start_at(["--url", http], *arguments, workload=workload)

    def start_at(self, target, *arguments, workload=None):
        result = self.folder / f"{time.monotonic_ns()}.json"
        # Longer than the server allows itself, so that its own 504 is seen.
        command = [self.loadtest, "run", *target, "--workload", workload or self.workload,
                   "--timeout", "20s", "--json", str(result), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return process, result

    def finish(self, started, seconds_max=120 + RUN_GRACE_S):
        """The JSON report of a run. One that is invalid is a failure of the scenario."""
        process, result = started
        try:
            text, _ = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"FAILED: the load tester did not end in {seconds_max} s")
        if not result.exists() or not result.read_text():
            raise SystemExit(f"FAILED: the load tester has no result:\n{text}")
        report = json.loads(result.read_text())
        for reason in report["failed_checks"]:
            self.check(f"the load tester's checks: {reason}", False)
        return report

    def run(self, http, *arguments, workload=None):
        return self.finish(self.start(http, *arguments, workload=workload))

    def check(self, what, good):
        print(f"{'ok    ' if good else 'FAILED'}  {what}", flush=True)
        if not good:
            self.failed.append(what)


    def check_ratio(self, what, ratios, low=0.0, high=float("inf")):
        """Holds when the interval of the median lies within the bounds; with fewer than 6 ratios, when the median does."""
        bounds = interval(ratios)
        near, far = bounds or (median(ratios), median(ratios))
        between = f"[{near:.2f}, {far:.2f}]" if bounds else f"({min(ratios):.2f} to {max(ratios):.2f}, too few for an interval)"
        asked = " and ".join(text for text, asks in ((f">= {low:g}", low > 0), (f"<= {high:g}", high < float("inf"))) if asks)
        self.check(f"{what}: {median(ratios):.2f} {between} ({asked})", low <= near and far <= high)


def say(text):
    print(f"        {text}", flush=True)


def spread(values):
    """Median and range, as text."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def quantiles(latency_us):
    return "  ".join(f"{name} {latency_us[name] / 1e3:.1f}" for name in ("p50", "p90", "p99", "max")) + " ms"


def client_share(report):
    """How much of the machine the load tester took from the server, as text."""
    cores = report["client_cpu_s"] / report["wall_s"]
    return f"the load tester took {cores:.2f} of {os.cpu_count()} cores"


def counters(http):
    """Every sample of a server's metrics page: the value by its name and labels."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}


def total(samples, name, *labels):
    """The sum of the samples of one name that have all these labels; None where there is none."""
    found = [value for key, value in samples.items()
             if key.split("{")[0] == name and all(label in key for label in labels)]
    return sum(found) if found else None


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def cpu_seconds(pid):
    """CPU that a process has had so far, in user and kernel mode."""
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Cores:
    """How many cores a process had from here to `since`: on a shared machine a rate means little without it."""

    def __init__(self, pid):
        self.pid, self.cpu_s, self.at = pid, cpu_seconds(pid), time.monotonic()

    def since(self):
        return (cpu_seconds(self.pid) - self.cpu_s) / (time.monotonic() - self.at)


@contextlib.contextmanager
def watch_memory(pid):
    """Yields a list that fills with the process's resident MiB, five times a second."""
    seen, done = [rss_mib(pid)], threading.Event()

    def watch():
        while not done.wait(0.2):
            seen.append(rss_mib(pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def lines_of(workload):
    with open(workload) as file:
        return [json.loads(line) for line in file if line.strip()]


def write_lines(path, lines):
    with open(path, "w") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    return str(path)


def closed(bench, http, clients, seconds, *arguments, **keywords):
    return bench.run(http, "--clients", clients, "--duration", f"{seconds}s", "--warmup", "1s", *arguments, **keywords)


def measure_capacity(bench, http, pid, rounds=CAPACITY_ROUNDS, seconds=5):
    """(pairs/s, the server's cores): medians at the concurrency that is best, from interleaved runs of each."""
    seen = {clients: [] for clients in CLIENTS}
    for _ in range(rounds):
        for clients in CLIENTS:
            cores = Cores(pid)
            report = closed(bench, http, clients, seconds)
            seen[clients].append((report["pairs_per_s"], cores.since()))
    medians = []
    for clients, runs in seen.items():
        rates, cores = zip(*runs)
        medians.append((median(rates), median(cores)))
        say(f"closed loop, {clients:>2} clients: {spread(rates)} pairs/s; the server had {median(cores):.2f} cores, "
            f"{client_share(report)}")
    return max(medians)

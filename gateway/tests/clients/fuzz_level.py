"""What a server holds when nobody asks anything: memory, files, threads, requests."""
import dataclasses
import json
import os
import time
import urllib.request

from measure import rss_mib

# Threads for work that blocks end when they have been idle for ten seconds, and connections when both sides know.
SETTLE_S_MAX = 20
SETTLE_PERIOD_S = 0.5
# Between two equal phases. Memory: what an allocator keeps in pieces moved by 20 MiB either way in phases that leaked nothing;
# with some 30,000 requests a phase, ten minutes on two busy cores, a leak of 1 KiB a request is as much as this.
RSS_GROWTH_MIB_MAX, FILES_GROWTH_MAX, THREADS_GROWTH_MAX = 32.0, 2, 1


@dataclasses.dataclass
class Level:
    rss_mib: float
    n_files: int
    n_threads: int
    n_inside: int

    def __str__(self):
        return f"{self.rss_mib:.1f} MiB resident, {self.n_files} files, {self.n_threads} threads, {self.n_inside} requests inside"

    @staticmethod
    def grown(first, second):
        """What is more than it may be."""
        bounds = [
            ("MiB resident", second.rss_mib - first.rss_mib, RSS_GROWTH_MIB_MAX),
            ("open files", second.n_files - first.n_files, FILES_GROWTH_MAX),
            ("threads", second.n_threads - first.n_threads, THREADS_GROWTH_MAX),
            ("requests inside", second.n_inside, 0),
        ]
        return [f"{grown:.1f} more {what} after the second phase (<= {most})" for what, grown, most in bounds if grown > most]


def level(http, pid):
    with urllib.request.urlopen(f"{http}/health", timeout=5) as answer:
        inside = json.load(answer)["controller"]["active"]
    return Level(rss_mib(pid), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), inside)


def settled(http, pid):
    """The lowest of each within the time that it takes to become quiet."""
    end, seen = time.monotonic() + SETTLE_S_MAX, []
    while time.monotonic() < end:
        seen.append(level(http, pid))
        time.sleep(SETTLE_PERIOD_S)
    return Level(*(min(values) for values in zip(*map(dataclasses.astuple, seen))))

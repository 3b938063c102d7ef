#!/usr/bin/env python3
"""200 clients for 30 seconds: no request is lost, every refusal says when to come back, memory stays bounded.

    python overload.py target/release/crossgate target/release/loadtest [--clients N] [--duration 30s] [-- SERVER FLAGS]
"""
import argparse
import os
import subprocess
import sys
import threading
import time

from server import serve

RSS_GROWTH_MAX_MIB = 300


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("crossgate")
    parser.add_argument("loadtest")
    parser.add_argument("--clients", default="200")
    parser.add_argument("--duration", default="30s")
    parser.add_argument("--workload", default=os.path.join(os.path.dirname(__file__), "../../../loadtest/workloads/sample.jsonl"))
    # What stands behind -- is for the server.
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1:]
    with serve(arguments.crossgate, *flags) as (http, _, seconds, process):
        before = rss_mib(process.pid)
        print(f"ready after {seconds:.2f} s with {before:.0f} MiB")
        peak, done = [before], threading.Event()

        def watch():
            while not done.wait(0.2):
                peak[0] = max(peak[0], rss_mib(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        run = subprocess.run([arguments.loadtest, "run", "--url", http, "--workload", arguments.workload,
                              "--clients", arguments.clients, "--duration", arguments.duration,
                              # Longer than the server allows itself, so that its own 504 is seen.
                              "--timeout", "20s"])
        done.set()
        watcher.join()
        print(f"memory: {before:.0f} MiB before, at most {peak[0]:.0f} MiB under load")
        if run.returncode != 0:
            sys.exit("FAILED: the load tester found a fault (above)")
        if peak[0] - before > RSS_GROWTH_MAX_MIB:
            sys.exit(f"FAILED: grew by more than {RSS_GROWTH_MAX_MIB} MiB")


if __name__ == "__main__":
    main()

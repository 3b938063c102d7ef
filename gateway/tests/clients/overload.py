#!/usr/bin/env python3
"""A server under more load than it can bear, in scenarios that each end in a verdict.

    python overload.py SCENARIO... [--model DIR] [--workload FILE.jsonl] [--rounds N] [--seconds S] [-- SERVER FLAGS]

    clients      200 clients for 30 s: nothing lost, every refusal honest, memory bounded (the default)
    capacity     closed loop at several concurrencies, interleaved: what the server can do
    three-times  open loop at three times that, deadlines of 1 s: goodput, latencies, refusals, memory
    hang-ups     the same while half of the clients hang up after 30 ms: no work for them
    mixed        single pairs beside requests of 1,000 documents: who waits for whom
    zipf         popular pairs: the throughput that the hit rate predicts
    hot          every pair cached: pairs a second beside what the tokenizer alone can do
    swap         70 % of the capacity while fifty builds of the plugin follow each other: no request failed
    redis        two servers over one Redis that is stopped, hung and restarted: hits shared, no request failed

Cache and coalescing are off unless the scenario is about them. The load tester shares the machine with the
server: each scenario says how much of it, and both sides of a ratio are measured with it running.
"""
import argparse
import sys
import time

import caching
import swapping
from measure import (ROOT, SAMPLE, Bench, Cores, client_share, closed, counters, lines_of, measure_capacity, quantiles,
                     say, total, watch_memory, write_lines)

DEADLINE_MS = 1000
# The server's default, of which two may stand before an admitted request.
BATCH_MS_MAX = 10
REFUSAL_MS_MAX = 50
GOODPUT_SHARE_MIN = 0.95
RSS_GROWTH_MAX_MIB = 300
# Later memory, of what the server held in the first third of the load.
RSS_FLAT_MAX = 1.1
HANG_UP_AFTER_MS = 30
LARGE_DOCUMENTS = 1000
LARGE_CLIENTS = 2
SINGLES_PER_S = 50


def capacity(bench, _):
    with bench.serve() as (http, _, _, process):
        pairs_per_s, cores = measure_capacity(bench, http, process.pid, bench.rounds)
        say(f"capacity: {pairs_per_s:.1f} pairs/s with {cores:.2f} cores")


def clients(bench, seconds):
    with bench.serve() as (http, _, started_s, process):
        say(f"ready after {started_s:.2f} s")
        with watch_memory(process.pid) as mib:
            report = closed(bench, http, 200, seconds)
        say(f"{report['sent']} sent, {report['answered']} answered, {report['outcomes']['ok']} ok; {quantiles(report['latency_us'])}")
        bench.check("no request is lost", report["lost"] == 0)
        growth = max(mib) - mib[0]
        bench.check(f"memory: {mib[0]:.0f} MiB before, at most {max(mib):.0f} MiB", growth <= RSS_GROWTH_MAX_MIB)


def three_times(bench, seconds, hang_ups=False):
    documents = sum(len(line["documents"]) for line in lines_of(bench.workload)) / len(lines_of(bench.workload))
    with bench.serve() as (http, _, _, process):
        unloaded = closed(bench, http, 1, 5)["latency_us"]
        say(f"unloaded (one client): {quantiles(unloaded)}")
        before, cores_before = measure_capacity(bench, http, process.pid)
        rate = 3 * before / documents
        patience = ["--hang-up", 0.5, "--hang-up-after", f"{HANG_UP_AFTER_MS}ms"] if hang_ups else []
        at_start = counters(http)
        cores = Cores(process.pid)
        with watch_memory(process.pid) as mib:
            report = bench.run(http, "--mode", "open", "--rate", f"{rate:.2f}", "--duration", f"{seconds}s",
                               "--warmup", "3s", "--deadline", f"{DEADLINE_MS}ms", *patience)
        cores, grown = cores.since(), counters(http)
        after, cores_after = measure_capacity(bench, http, process.pid)
        held, cores_held = (before + after) / 2, (cores_before + cores_after) / 2
        say(f"capacity: {before:.1f} pairs/s before, {after:.1f} after; {held:.1f} counts, with {cores_held:.2f} cores")
        say(f"offered {rate:.1f} requests/s, three times that; the server had {cores:.2f} cores, {client_share(report)}")
        per_core = report["goodput"]["pairs_per_s"] / cores / (held / cores_held)
        say(f"for each core that the server had, goodput is {per_core * 100:.1f} % of the capacity")
        explain(report)
        judge_overload(bench, report, held, unloaded["p50"] / 1e3, hang_ups)
        judge_memory(bench, mib)
        if hang_ups:
            judge_waste(bench, report, at_start, grown)


def explain(report):
    outcomes = report["outcomes"]
    say(f"ok {outcomes['ok']} (late {report['goodput']['late']}): {quantiles(report['latency_us'])}")
    say(f"refused {report['refused_share'] * 100:.1f} %: {quantiles(report['refused_latency_us'])}")
    say(f"504: {outcomes['deadline_exceeded']}; hung up: {outcomes['hung_up']}; "
        f"started late by {quantiles(report['start_delay_us'])}")


def judge_overload(bench, report, capacity_held, unloaded_p50_ms, hang_ups):
    goodput, ok = report["goodput"]["pairs_per_s"], report["latency_us"]
    share = goodput / capacity_held
    if hang_ups:
        # What was computed before a client hung up is lost to it, whatever the server does.
        begun = report["server"]["rows"] / report["wall_s"] / capacity_held
        say(f"goodput {goodput:.1f} pairs/s, {share * 100:.1f} % of the capacity; with what was begun before its client "
            f"hung up {begun * 100:.1f} %")
    else:
        bench.check(f"goodput {goodput:.1f} pairs/s is {share * 100:.1f} % of the capacity "
                    f"(>= {GOODPUT_SHARE_MIN * 100:.0f} %)", share >= GOODPUT_SHARE_MIN)
    p50_max = 4 * unloaded_p50_ms + 2 * BATCH_MS_MAX
    bench.check(f"p50 of ok answers {ok['p50'] / 1e3:.1f} ms (<= {p50_max:.1f} ms)", ok["p50"] / 1e3 <= p50_max)
    bench.check(f"p99 of ok answers {ok['p99'] / 1e3:.1f} ms (<= {DEADLINE_MS} ms)", ok["p99"] / 1e3 <= DEADLINE_MS)
    refusals = report["refused_latency_us"]["p99"] / 1e3
    bench.check(f"p99 of refusals {refusals:.1f} ms (<= {REFUSAL_MS_MAX} ms)", refusals <= REFUSAL_MS_MAX)


def judge_memory(bench, mib):
    third = max(1, len(mib) // 3)
    early, late = max(mib[:third]), max(mib[-third:])
    bench.check(f"memory: {mib[0]:.0f} MiB before, at most {max(mib):.0f}, {mib[-1]:.0f} after; "
                f"last third at most {late:.0f} against {early:.0f} in the first", late <= early * RSS_FLAT_MAX)


def judge_waste(bench, report, before, after):
    """Rows that were computed although their client was gone: at most those of the batches in flight at that time."""
    def grown(name, *labels):
        return (total(after, name, *labels) or 0) - (total(before, name, *labels) or 0)

    rows, unwanted = grown("crossgate_rows_total"), grown("crossgate_rows_unwanted_total")
    mean_batch = rows / max(1, grown("crossgate_batches_total"))
    cancelled = grown("crossgate_score_requests_total", 'outcome="cancelled"')
    dropped = grown("crossgate_rows_dropped_total", 'reason="cancelled"')
    say(f"{cancelled:.0f} requests were cancelled after admission; {dropped:.0f} of their rows were never cut")
    workers = total(after, "crossgate_workers") or 1
    most = workers * mean_batch
    each = unwanted / max(1, cancelled)
    bench.check(f"{unwanted:.0f} of {rows:.0f} rows were computed for who was gone, {each:.1f} for each of them "
                f"(<= {most:.1f}: {workers:.0f} batches of {mean_batch:.1f} rows in flight)", each <= most)


def hang_ups(bench, seconds):
    three_times(bench, seconds, hang_ups=True)


def mixed(bench, seconds):
    """Rounds of: single pairs alone, large requests alone, both."""
    lines = lines_of(bench.workload)
    pool = [document for line in lines for document in line["documents"]]
    pool *= LARGE_DOCUMENTS // len(pool) + 1
    large = write_lines(bench.folder / "large.jsonl",
                        [{"query": line["query"], "documents": (pool[at:] + pool[:at])[:LARGE_DOCUMENTS]}
                         for at, line in enumerate(lines[:8])])
    seconds = min(seconds, 12)
    singles = ["--mode", "open", "--rate", SINGLES_PER_S, "--documents", 1, "--metrics-url", "none", "--warmup", "0s"]
    larges = ["--clients", LARGE_CLIENTS, "--warmup", "0s", "--metrics-url", "none", "--duration", f"{seconds}s"]
    figures = []
    with bench.serve() as (http, _, _, _):
        bench.run(http, *singles, "--duration", "3s")
        for _ in range(bench.rounds):
            alone = bench.run(http, *singles, "--duration", f"{seconds}s")
            large_alone = bench.run(http, *larges, workload=large)
            started = bench.start(http, *larges, workload=large)
            time.sleep(1)
            beside = bench.run(http, *singles, "--duration", f"{seconds - 2}s")
            large_beside = bench.finish(started)
            figures.append(mixed_round(alone, beside, large_alone, large_beside))
    p99s, times = zip(*figures)
    bench.check_ratio("single pairs' p99 beside large requests / unloaded", p99s, high=4)
    bench.check_ratio("large requests' time / alone without the singles' share of the work", times, high=1.2)


def mixed_round(alone, beside, large_alone, large_beside):
    """(singles' p99 loaded / unloaded, large requests' time / their time alone without the singles' share)."""
    work = {name: report["pairs"] / report["wall_s"] for name, report in (("singles", beside), ("large", large_beside))}
    share = work["singles"] / sum(work.values())
    say(f"singles alone {quantiles(alone['latency_us'])}; beside {quantiles(beside['latency_us'])}; "
        f"refused {beside['refused_share'] * 100:.1f} %")
    say(f"large alone mean {large_alone['latency_us']['mean'] / 1e3:.0f} ms ({large_alone['outcomes']['ok']}), beside "
        f"{large_beside['latency_us']['mean'] / 1e3:.0f} ms ({large_beside['outcomes']['ok']}), "
        f"refused {large_beside['refused_share'] * 100:.1f} %; singles' share {share * 100:.1f} %; {client_share(beside)}")
    expected = large_alone["latency_us"]["mean"] / (1 - share)
    return beside["latency_us"]["p99"] / alone["latency_us"]["p99"], large_beside["latency_us"]["mean"] / expected


SCENARIOS = {"clients": clients, "capacity": capacity, "three-times": three_times, "hang-ups": hang_ups,
             "mixed": mixed, "zipf": caching.zipf, "hot": caching.hot, "redis": caching.redis,
             "swap": swapping.swap}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all, or any of: " + ", ".join(SCENARIOS))
    parser.add_argument("--crossgate", default=str(ROOT / "target/release/crossgate"))
    parser.add_argument("--loadtest", default=str(ROOT / "target/release/loadtest"))
    parser.add_argument("--model", help="a folder, hub id or starter; the built-in model when left out")
    parser.add_argument("--workload", default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of what is compared (7)")
    parser.add_argument("--seconds", type=int, default=0, help="of load; 60 in three-times and hang-ups, else 30")
    # What stands behind -- is for the server.
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1:]
    wanted = list(SCENARIOS) if arguments.scenarios == ["all"] else arguments.scenarios or ["clients"]
    unknown = set(wanted) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if arguments.model:
        flags = ["--model", arguments.model, *flags]
    bench = Bench(arguments.crossgate, arguments.loadtest, arguments.workload, flags, arguments.rounds)
    if not (bench.knows("--cache") and bench.knows("--coalesce")):
        say("NOTE: this server has no --cache or no --coalesce flag: nothing is switched off")
    for name in wanted:
        print(f"{name}", flush=True)
        SCENARIOS[name](bench, arguments.seconds or (60 if name in ("three-times", "hang-ups") else 30))
    if bench.failed:
        sys.exit("\nFAILED:\n  " + "\n  ".join(bench.failed))
    print("\nevery bound holds")


if __name__ == "__main__":
    main()

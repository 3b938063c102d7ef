#!/usr/bin/env python3
"""Crossgate beside the engines and the server that a user could pick instead: interleaved rounds, paired ratios.

    python duel.py --crossgate target/release/crossgate --model MODEL_DIR WORKLOAD.jsonl [...]

Engines (ort-fp32 ort-int8 ov-fp32 ov-auto ov-int8) run in process and without tokenizing, beside `crossgate
bench --stage inference`. Servers (infinity) answer one HTTP client with tokenizing, beside `crossgate serve`.

The answers come first: every score is compared with ONNX Runtime's fp32 by Spearman's rho, and nothing is
timed when Crossgate's is below --rho-min. Then each round measures all in turn, A B C A B C …; a ratio is that
of two neighbours in time. Printed are medians, and the median ratio with its 95 % interval.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import engines
import servers
from figures import interval, median, spearman

ROUNDS = 7  # fewer than 6 have no 95 % interval; one may be lost to a noisy neighbour
REQUESTS = 24  # of the workload: enough to be steady, short enough to repeat
IN_FLIGHT = 8
BATCH_TOKENS = [512]  # small batches serve these engines best
RHO_MIN = 0.9
REFERENCE = "ort-fp32"


def say(text):
    """Progress, apart from what is printed as the result."""
    print(text, file=sys.stderr, flush=True)


class Crossgate:
    """`crossgate bench`, a process for each round."""

    def __init__(self, arguments, workload):
        self.scores = tempfile.NamedTemporaryFile(suffix=".jsonl")
        self.command = [
            arguments.crossgate, "bench", "--stage", "inference", "--json",
            "--workload", workload, "--requests", str(arguments.requests), "--in-flight", str(IN_FLIGHT),
            "--models", "model=" + os.path.abspath(arguments.model), "--output", self.scores.name,
            "--log-level", "error", *arguments.crossgate_args.split()]
        self.passes = 1

    def measure(self):
        """Scores, and pairs a second."""
        command = self.command + ["--rounds", str(self.passes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"crossgate failed ({done.returncode}): {' '.join(command)}")
        self.report = json.loads(done.stdout)
        seconds, lines = sum(self.report["rounds_s"]), engines.read_requests(self.scores.name)
        # The next time as many passes as fill a round.
        self.passes = max(1, math.ceil(engines.ROUND_S_MIN * self.passes / seconds))
        return [score for line in lines for score in line["scores"]], \
            self.report["workload"]["pairs"] * len(self.report["rounds_s"]) / seconds

    def close(self):
        self.scores.close()


class Engine:
    """One of `engines.ENGINES`, opened once, with the batches that serve it best."""

    def __init__(self, name, arguments, encoded):
        self.sessions = engines.ENGINES[name](arguments.model)
        tried = []
        for tokens_max in arguments.batch_tokens:
            jobs = engines.batches(encoded, IN_FLIGHT, tokens_max)
            engines.score(self.sessions, jobs[:2 * engines.CORES])
            tried.append((engines.score(self.sessions, jobs)[1], tokens_max, jobs))
        seconds, self.tokens_max, self.jobs = min(tried, key=lambda found: found[0])
        say(f"  {name}: {seconds:.1f} s a round in batches of {self.tokens_max} padded tokens")

    def measure(self):
        """Scores, and pairs a second."""
        return engines.rate(lambda: engines.score(self.sessions, self.jobs))

    def close(self):
        self.sessions = None


def check_tokens(report, encoded):
    """Both sides must be given the same work."""
    tokens = sum(len(encoding.ids) for request in encoded for encoding in request)
    if report["workload"]["tokens"] != tokens:
        sys.exit(f"crossgate reads {report['workload']['tokens']} tokens and the peers {tokens}: they do not "
                 f"cut rows alike; check model.max_length and tokenizer.json")


def check_answers(entrants, reference, rho_min):
    """Rho of each to the reference, and a first untimed round. Ends the program when ours is too low."""
    found = {}
    for name, entrant in entrants.items():
        found[name] = spearman(reference, entrant.measure()[0])
        say(f"  {name}: rho {found[name]:.4f} to {REFERENCE}")
        if name.startswith("crossgate") and not found[name] >= rho_min:
            sys.exit(f"{name}: rho {found[name]:.4f} is below {rho_min}: its times are worth nothing")
    return found


def contest(entrants, reference, arguments):
    """Interleaved rounds of ours, the first one, and the others. Prints a table; what is in it."""
    rhos = check_answers(entrants, reference, arguments.rho_min)
    speeds = {name: [] for name in entrants}
    for number in range(1, arguments.rounds + 1):
        for name, entrant in entrants.items():
            speeds[name].append(entrant.measure()[1])
        last = "  ".join(f"{name} {found[-1]:.1f}" for name, found in speeds.items())
        say(f"  round {number}/{arguments.rounds}: {last} pairs/s")
    ours, *_ = entrants
    rows = []
    for name, found in speeds.items():
        ratios = [a / b for a, b in zip(speeds[ours], found)]
        low, high = interval(ratios) or (None, None)
        rows.append({"name": name, "pairs_per_s": median(found), "rounds": found, "rho": rhos[name],
                     "ratio": median(ratios), "ratio_low": low, "ratio_high": high})
    print(f"{'':<18}{'pairs/s':>9}{'rho':>9}   {ours} is so many times as fast [95 %]")
    for row in rows:
        ratio = f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        print(f"{row['name']:<18}{row['pairs_per_s']:>9.1f}{row['rho']:>9.4f}   {'' if row['name'] == ours else ratio}",
              flush=True)
    return rows


def duel(workload, arguments):
    """All contests on one workload."""
    requests = engines.read_requests(workload, arguments.requests)
    encoded = engines.encode(arguments.model, requests)
    n_pairs = sum(len(request) for request in encoded)
    n_tokens = sum(len(encoding.ids) for request in encoded for encoding in request)
    print(f"\n{workload}: {n_pairs} pairs of {n_tokens / n_pairs:.1f} tokens, {arguments.rounds} rounds, "
          f"{engines.CORES} cores", flush=True)
    reference = Engine(REFERENCE, arguments, encoded)
    scores = reference.measure()[0]
    entrants = {"crossgate": Crossgate(arguments, workload)}
    for name in arguments.engines:
        entrants[name] = reference if name == REFERENCE else Engine(name, arguments, encoded)
    check_tokens(measured(entrants["crossgate"]), encoded)
    found = {"workload": workload, "engines": contest(entrants, scores, arguments),
             "crossgate": entrants["crossgate"].report}
    for entrant in entrants.values():
        entrant.close()
    if arguments.infinity:
        pair = servers.start(arguments, requests)
        try:
            found["servers"] = contest(pair, scores, arguments)
        finally:
            for server in pair.values():
                server.close()
    return found


def measured(crossgate):
    crossgate.measure()
    return crossgate.report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD.jsonl")
    parser.add_argument("--crossgate", required=True, help="the program; its plugins lie beside it")
    parser.add_argument("--model", required=True, help="a folder that make_model.py made")
    parser.add_argument("--engines", nargs="*", default=["ort-fp32", "ort-int8", "ov-fp32", "ov-int8"],
                        choices=list(engines.ENGINES), metavar="ENGINE")
    parser.add_argument("--infinity", help="the program infinity_emb; without it no servers are compared")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least {ROUNDS}")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of each workload [{REQUESTS}]")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=BATCH_TOKENS, metavar="N",
                        help="padded tokens of the engines' batches; of several, each engine gets its best")
    parser.add_argument("--rho-min", type=float, default=RHO_MIN, help=f"[{RHO_MIN}]")
    parser.add_argument("--crossgate-args", default="", help="more flags of crossgate, as one text")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured here")
    arguments = parser.parse_args()
    if arguments.rounds < ROUNDS:
        parser.error(f"--rounds {arguments.rounds}: fewer than {ROUNDS} say too little on a noisy machine")
    found = [duel(workload, arguments) for workload in arguments.workloads]
    if arguments.json:
        with open(arguments.json, "w") as output:
            json.dump(found, output, indent=1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measures Crossgate on this machine's GPU beside PyTorch and transformers, in one run of minutes.

    python3 evidence.py BUNDLE [--out FOLDER] [--minutes 9]
    python3 evidence.py BUNDLE --plugin candle-cpu --device cpu --dtype f32 --quick      tries all of it without a GPU
    python3 evidence.py BUNDLE --libraries target/emulated --peer-device cpu --quick     the plugin, too, but emulated

BUNDLE is what `make gpu-bundle` packed: a folder, or the archive of it. The machine needs the GPU's driver and a Python
with torch and transformers, whose packages bring CUDA's libraries, and no network. What is measured, in this order:

1. every golden model in f32, f16 and bf16 against the logits of transformers;
2. pairs a second for models of MiniLM-L6's and XLM-RoBERTa large's size, random weights by seed, by row length: Crossgate
   and PyTorch on the same rows, in turn, after their logits were compared with each other and with PyTorch's in f32;
3. requests of few documents, one at a time: milliseconds of one, with CUDA graphs, without, and of PyTorch;
4. the whole server by HTTP and gRPC beside inference alone, and with 1 to 16 tokenizer threads; how busy the GPU is;
5. memory.

OUT gets evidence.md, evidence.json and the programs' logs. Steps for which no time is left are named in the report.
Exit status: 0 all was measured, 1 something failed or was left out.
"""
import argparse
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import machine
import programs
import report
import texts

DTYPES = ["f32", "f16", "bf16"]
TOKENIZERS = [1, 2, 4, 8, 16]
BATCH_TOKENS = [4_096, 8_192, 16_384, 32_768, 65_536, 131_072]
# Crossgate's own choices, and bounds beyond which batches gain nothing.
BOUNDS = {"default": [], "wide": ["--max-batch-size", "1024", "--max-batch-tokens", "65536", "--batch-us-max", "50000"]}
CHECKED_ROWS = 64
# How far logits, whose standard deviation is about 1, may be from PyTorch's in f32: so many times as far as PyTorch's
# own in the same dtype, and a little.
ERRORS_MAX, ERROR_MIN = 3.0, 2e-3
# Requests of so many documents; the server bench has as many in flight as clients.
DOCUMENTS = 100
CLIENTS = 48
SERVER_TOKENS = 128
# Documents of a small request: how many of those are timed, all of so many tokens.
SMALL = {1: 200, 8: 100, 32: 50}
SMALL_TOKENS = 74
# What candle-cuda is told of CUDA graphs.
GRAPHS = {"as measured": {}, "always": {"graphs": True}, "never": {"graphs": False}}

# model: row length: requests of DOCUMENTS. A round of them takes a good part of a second on a large GPU.
FULL = {"minilm-l6": {74: 160, 128: 96, 512: 24}, "xlm-r-large": {74: 32, 128: 20, 512: 6}}
QUICK = {"quick-bert": {74: 2, 128: 1}, "quick-xlm-r": {74: 1, 128: 1}}


class Evidence:
    def __init__(self, asked, bundle, out):
        self.asked, self.out = asked, out
        self.ends = time.monotonic() + asked.minutes * 60
        self.crossgate = programs.Crossgate(bundle, asked.plugin, asked.device, out, asked.libraries)
        self.bundle, self.peer = bundle, programs.Peer(asked.peer_device or asked.device, out / "peer.log")
        self.samples = machine.Samples()
        self.models = QUICK if asked.quick else FULL
        self.blocks, self.rounds, self.round_s = (2, 1, 0.0) if asked.quick else (3, 3, 1.5)
        self.serve_s = 2 if asked.quick else 4
        self.found = {"asked": vars(asked), "parity": [], "models": {}, "speed": [], "small": [], "server": [], "tokenizers": [],
                      "problems": [], "steps_s": {}}

    def step(self, name, needed_s, do, *given):
        """One thing to measure, if its time is left; what fails is noted, and the next one tried."""
        if self.ends - time.monotonic() < needed_s:
            self.found["problems"].append(f"{name}: left out, no time was left")
            return
        started = time.monotonic()
        print(f"[{self.asked.minutes * 60 - (self.ends - started):5.0f} s] {name}", file=sys.stderr, flush=True)
        try:
            do(*given)
        except (programs.Failed, OSError, KeyError, ValueError) as error:
            self.found["problems"].append(f"{name}: {error}")
        self.found["steps_s"][name] = time.monotonic() - started
        # Each step's results are there even if a later one takes the machine down.
        report.write(self.found, self.out)

    def all(self):
        self.step("machine", 0, self.about)
        self.step("parity", 20, self.parity)
        for model, lengths in self.models.items():
            self.step(f"make {model}", 20, self.make, model)
            self.step(f"load {model}", 20, self.load, model)
            for row_tokens, count in lengths.items():
                self.step(f"speed of {model}, {row_tokens} tokens", 40, self.speed, model, row_tokens, count)
            for documents, count in SMALL.items():
                self.step(f"{documents} documents for {model}", 15, self.small, model, documents, count)
            self.step(f"drop {model}", 0, self.peer.ask, "drop")
        for model in self.models:
            self.step(f"server with {model}", 30, self.server, model)
        for model in self.models:
            for tokenizers in TOKENIZERS:
                if tokenizers <= self.found["machine"]["processors"]:
                    self.step(f"{tokenizers} tokenizers for {model}", 15, self.tokenizers, model, tokenizers)

    def about(self):
        self.found["machine"] = machine.about()
        self.found["crossgate"], self.found["peer"] = self.crossgate.version(), self.peer.ask("about")

    def parity(self):
        self.found["parity"] = self.crossgate.golden(DTYPES, self.bundle)
        if not self.found["parity"]:
            raise programs.Failed("the golden tests said nothing")

    def folder(self, model):
        return str(self.out / "models" / model)

    def workload(self, model, row_tokens):
        return str(self.out / "models" / model / f"{row_tokens}.jsonl")

    def make(self, model):
        self.found["models"][model] = self.peer.ask("make", model=model, folder=self.folder(model))
        words = self.words(model)
        for row_tokens, count in self.models[model].items():
            texts.write_lines(self.workload(model, row_tokens), texts.requests(words, row_tokens, count, DOCUMENTS))

    def words(self, model):
        with open(Path(self.folder(model)) / "words.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def load(self, model):
        self.peer.ask("load", folder=self.folder(model), dtypes=sorted({self.asked.dtype, "f32"}))

    def bench(self, model, row_tokens, rounds, stage="inference", bounds="default", scores=None):
        return self.crossgate.bench(stage, self.folder(model), self.asked.dtype, self.workload(model, row_tokens),
                                    row_tokens, self.models[model][row_tokens], rounds, scores, BOUNDS[bounds])

    def speed(self, model, row_tokens, count):
        """Logits first: nothing is timed whose answers are wrong."""
        dtype = self.asked.dtype
        pairs = self.peer.ask("rows", workload=self.workload(model, row_tokens), row_tokens=row_tokens)["pairs"]
        scores = self.out / "scores.jsonl"
        rates, spans = {}, []
        for bounds in BOUNDS:
            started = time.monotonic()
            first = self.bench(model, row_tokens, 1, bounds=bounds, scores=scores)
            rates[bounds] = first["pairs_per_s"]
            spans.append((started, time.monotonic()))
        line = {"model": model, "row_tokens": row_tokens, "pairs": pairs, "dtype": dtype,
                "about": first["model"], "bounds": max(rates, key=rates.get),
                "errors": self.compare(scores, dtype)}
        batch_tokens = self.peer.ask("tune", dtype=dtype, tokens=BATCH_TOKENS)
        ours, theirs, busy = [], [], []
        for _ in range(self.blocks):
            done = self.bench(model, row_tokens, self.rounds, bounds=line["bounds"])
            ours += [pairs / seconds for seconds in done["rounds_s"]]
            started = time.monotonic()
            theirs += [self.peer.ask("round", dtype=dtype, batch_tokens=batch_tokens, seconds=self.round_s)
                       for _ in range(self.rounds)]
            busy.append(self.samples.between(started, time.monotonic()))
        line |= {"ours": ours, "theirs": theirs, "ratio": statistics.median(ours) / statistics.median(theirs),
                 "default": rates["default"], "batch_tokens": batch_tokens, "batches": done["batches"],
                 "arithmetic": done["arithmetic"], "peer_gpu": next(filter(None, busy), None),
                 "gpu": self.samples.between(*spans[-1])}
        self.found["speed"].append(line)

    def small(self, model, documents, count):
        """One request at a time, so nothing hides what a launch takes."""
        count = 3 if self.asked.quick else count
        dtype, workload = self.asked.dtype, Path(self.folder(model)) / f"small-{documents}.jsonl"
        texts.write_lines(workload, texts.requests(self.words(model), SMALL_TOKENS, count, documents))
        self.peer.ask("rows", workload=str(workload), row_tokens=SMALL_TOKENS)
        line = {"model": model, "documents": documents, "ours": {}, "theirs": []}
        ways = GRAPHS if self.asked.plugin == "candle-cuda" else {"as measured": {}}
        for name, options in ways.items():
            scores = self.out / "scores.jsonl"
            done = self.crossgate.bench("inference", self.folder(model), dtype, workload, SMALL_TOKENS, count, self.rounds,
                                        scores, ["--backend-options", json.dumps(options)], 1)
            self.compare(scores, dtype)
            line["ours"][name] = [seconds / count for seconds in done["rounds_s"]]
        self.peer.ask("each", dtype=dtype, count=count, rows=documents)
        line["theirs"] = [self.peer.ask("each", dtype=dtype, count=count, rows=documents) for _ in range(self.rounds)]
        self.found["small"].append(line)

    def compare(self, scores, dtype):
        """The largest differences of logits: ours and the peer's to its f32, and to each other."""
        with open(scores, encoding="utf-8") as lines:
            ours = [score for line in lines for score in json.loads(line)["scores"]][:CHECKED_ROWS]
        exact, theirs = (self.peer.ask("scores", dtype=of, count=len(ours)) for of in ("f32", dtype))
        farthest = lambda a, b: max(abs(x - y) for x, y in zip(a, b, strict=True))
        errors = {"ours": farthest(ours, exact), "theirs": farthest(theirs, exact), "apart": farthest(ours, theirs),
                  "deviation": statistics.stdev(exact) if len(exact) > 1 else None}
        # Written so that a NaN is refused, too.
        if not errors["ours"] <= ERRORS_MAX * errors["theirs"] + ERROR_MIN:
            raise programs.Failed(f"not timed, because the logits are wrong: {errors}")
        return errors

    def server(self, model):
        """The same rows by in-process inference, in-process from texts on, by HTTP and by gRPC."""
        row_tokens = SERVER_TOKENS
        line = {"model": model, "row_tokens": row_tokens, "before_mib": self.samples.memory_mib()}
        for stage in ("inference", "pipeline"):
            started = time.monotonic()
            line[stage] = self.bench(model, row_tokens, self.rounds, stage)["pairs_per_s"]
            line[f"{stage}_gpu"] = self.samples.between(started, time.monotonic())
        with programs.Server(self.crossgate, self.folder(model), self.asked.dtype, row_tokens) as server:
            for name, url in (("http", server.http), ("grpc", server.grpc)):
                line |= self.under_load(name, url, model, row_tokens)
        self.found["server"].append(line)

    def under_load(self, name, url, model, row_tokens):
        started = time.monotonic()
        load = self.crossgate.load(url, self.workload(model, row_tokens), self.serve_s, CLIENTS, name == "grpc")
        # Without the second in which the load warmed up.
        gpu = self.samples.between(started + 1, time.monotonic())
        if load["failed_checks"]:
            raise programs.Failed(f"{name}: {load['failed_checks']}")
        return {name: load["pairs_per_s"], f"{name}_gpu": gpu, f"{name}_client_cpu_s": load["client_cpu_s"],
                f"{name}_wall_s": load["wall_s"]}

    def tokenizers(self, model, count):
        row_tokens = SERVER_TOKENS
        more = ["--tokenizers", count]
        with programs.Server(self.crossgate, self.folder(model), self.asked.dtype, row_tokens, more) as server:
            line = self.under_load("http", server.http, model, row_tokens)
        self.found["tokenizers"].append({"model": model, "tokenizers": count} | line)

    def close(self):
        self.peer.close()
        self.samples.close()


def unpacked(bundle, out):
    """The bundle's folder."""
    if bundle.is_dir():
        return bundle
    with tarfile.open(bundle) as archive:
        archive.extractall(out, filter="data")
    return out / "gpu-bundle"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, help="a folder for results and all that is made [a new one]")
    parser.add_argument("--plugin", default="candle-cuda")
    parser.add_argument("--device", default="cuda", help="as Crossgate names it [cuda]")
    parser.add_argument("--libraries", help="a folder with CUDA's libraries for Crossgate [those of this Python's packages]")
    parser.add_argument("--peer-device", help="as PyTorch names it [the same]")
    parser.add_argument("--dtype", default="f16", choices=DTYPES)
    parser.add_argument("--minutes", type=float, default=9.0, help="no step is begun that would end later [9]")
    parser.add_argument("--quick", action="store_true", help="tiny models and few rounds: only to try the script")
    asked = parser.parse_args()
    out = (asked.out or Path(tempfile.mkdtemp(prefix="crossgate-evidence-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Rust's tokenizers start threads in the peer; they would warn when it is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    evidence = Evidence(asked, unpacked(asked.bundle, out).resolve(), out)
    asked.bundle, asked.out = str(asked.bundle), str(out)
    try:
        evidence.all()
    finally:
        evidence.close()
    report.write(evidence.found, out)
    print((out / "evidence.md").read_text(encoding="utf-8"))
    return 1 if evidence.found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())

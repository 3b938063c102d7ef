#!/usr/bin/env python3
"""Scores of a workload by ONNX Runtime, in process, one session a core, batches sorted by length.

    python reference.py MODEL_DIR WORKLOAD.jsonl [--graph onnx/model.onnx] [--output scores.jsonl] [--requests N]

Writes a line {"query", "scores"} for each request (raw logits in document order) and prints pairs/s.
"""
import argparse
import json
import os

import engines

BATCH_TOKENS = 512  # small batches serve this engine best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("workload")
    parser.add_argument("--graph", default="onnx/model.onnx")
    parser.add_argument("--output")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()

    requests = engines.read_requests(arguments.workload, arguments.requests)
    encoded = engines.encode(arguments.model, requests, arguments.max_length)
    sessions = engines.onnxruntime_sessions(os.path.join(arguments.model, arguments.graph))
    jobs = engines.batches(encoded, len(requests), BATCH_TOKENS)
    engines.score(sessions, jobs[:1])
    scores, seconds = engines.score(sessions, jobs)
    print(f"{arguments.graph}: {len(scores)} pairs in {seconds:.2f} s, {len(scores) / seconds:.1f} pairs/s, tokenizing excluded")
    if arguments.output:
        at = 0
        with open(arguments.output, "w") as output:
            for request in requests:
                n = len(request["documents"])
                output.write(json.dumps({"query": request["query"], "scores": [float(s) for s in scores[at:at + n]]}) + "\n")
                at += n


if __name__ == "__main__":
    main()

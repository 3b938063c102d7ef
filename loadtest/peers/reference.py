#!/usr/bin/env python3
"""Scores of a workload by ONNX Runtime, in process, one session a core, batches sorted by length.

    python reference.py MODEL_DIR WORKLOAD.jsonl [--graph onnx/model.onnx] [--output scores.jsonl] [--requests N]

Writes a line {"query", "scores"} for each request (raw logits in document order) and prints pairs/s.
"""
import argparse
import json
import os
import queue
import threading
import time

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH_TOKENS = 512  # small batches serve this engine best


def cut(lengths):
    """Indices by length, in batches of at most BATCH_TOKENS padded tokens."""
    batch = []
    for index in np.argsort(lengths, kind="stable"):
        if batch and lengths[index] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(int(index))
    if batch:
        yield batch


def feed(encodings, names):
    width = max(len(encoding.ids) for encoding in encodings)
    arrays = {name: np.zeros((len(encodings), width), np.int64) for name in names}
    for row, encoding in enumerate(encodings):
        values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
        for name in names:
            arrays[name][row, :len(encoding.ids)] = values[name]
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("workload")
    parser.add_argument("--graph", default="onnx/model.onnx")
    parser.add_argument("--output")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(os.path.join(arguments.model, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(arguments.max_length, strategy="only_second")
    requests = [json.loads(line) for line in open(arguments.workload)][:arguments.requests]
    encoded = [tokenizer.encode_batch([(r["query"], d) for d in r["documents"]]) for r in requests]
    flat = [encoding for request in encoded for encoding in request]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = os.path.join(arguments.model, arguments.graph)
    sessions = [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(os.cpu_count())]
    names = [graph_input.name for graph_input in sessions[0].get_inputs()]
    scores, jobs = np.zeros(len(flat), np.float32), queue.SimpleQueue()
    for batch in cut([len(encoding.ids) for encoding in flat]):
        jobs.put(batch)

    def work(session):
        while True:
            try:
                batch = jobs.get_nowait()
            except queue.Empty:
                return
            scores[batch] = session.run(None, feed([flat[index] for index in batch], names))[0][:, 0]

    sessions[0].run(None, feed(flat[:1], names))
    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    print(f"{arguments.graph}: {len(flat)} pairs in {seconds:.2f} s, {len(flat) / seconds:.1f} pairs/s, tokenizing excluded")
    if arguments.output:
        at = 0
        with open(arguments.output, "w") as output:
            for request in requests:
                n = len(request["documents"])
                output.write(json.dumps({"query": request["query"], "scores": [float(s) for s in scores[at:at + n]]}) + "\n")
                at += n


if __name__ == "__main__":
    main()

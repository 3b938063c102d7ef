"""Engines that a user could pick instead, each at its best: in process, one session a core, batches sorted by
length, so that little is padded."""
import json
import os
import queue
import threading
import time

import numpy as np
from tokenizers import Tokenizer

ROW_TOKENS_MAX = 512
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
# A shorter round measures when its threads were woken.
ROUND_S_MIN = 1.0
# What this process may use, not what the machine has: the same that crossgate counts.
CORES = len(os.sched_getaffinity(0))


def read_requests(path, count=None):
    """The workload's first `count` requests."""
    with open(path) as lines:
        return [json.loads(line) for line in lines if line.strip()][:count]


def encode(model, requests, row_tokens_max=ROW_TOKENS_MAX):
    """Encodings of each request's pairs, the longer text cut first, as transformers and crossgate cut."""
    tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(row_tokens_max, strategy="longest_first")
    pairs = ([(request["query"], document) for document in request["documents"]] for request in requests)
    return [tokenizer.encode_batch(of_request) for of_request in pairs]


def cut(lengths, tokens_max):
    """Places by length, in batches of at most `tokens_max` padded tokens."""
    batch = []
    for place in np.argsort(lengths, kind="stable"):
        if batch and lengths[place] * (len(batch) + 1) > tokens_max:
            yield batch
            batch = []
        batch.append(int(place))
    if batch:
        yield batch


def pad(encodings):
    """A feed of one rectangle."""
    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    arrays = {name: np.zeros(shape, np.int64) for name in INPUTS}
    for row, encoding in enumerate(encodings):
        values = dict(zip(INPUTS, (encoding.ids, encoding.attention_mask, encoding.type_ids)))
        for name in INPUTS:
            arrays[name][row, :len(encoding.ids)] = values[name]
    return arrays


def batches(encoded, in_flight, tokens_max):
    """(places, feed) of each batch. Rows are sorted within a window of `in_flight` requests, what a server
    could see at a time. Made before the clock runs: padding in Python would be held against the engine."""
    first, jobs = 0, []
    for start in range(0, len(encoded), in_flight):
        window = [encoding for request in encoded[start:start + in_flight] for encoding in request]
        for places in cut([len(encoding.ids) for encoding in window], tokens_max):
            feed = pad([window[place] for place in places])
            jobs.append(([first + place for place in places], feed))
        first += len(window)
    return jobs


def onnxruntime_sessions(file):
    """A function a core from a feed to logits."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
                for _ in range(CORES)]

    # Some models have no token types.
    names = [graph_input.name for graph_input in sessions[0].get_inputs()]

    def of(session):
        return lambda feed: session.run(None, {name: feed[name] for name in names})[0][:, 0]
    return [of(session) for session in sessions]


def openvino_sessions(file, precision):
    """The same; `precision` is that of whatever is not quantized, None for OpenVINO's own choice."""
    import openvino
    settings = {"INFERENCE_NUM_THREADS": CORES, "NUM_STREAMS": CORES}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def of(request):
        return lambda feed: request.infer(feed)[compiled.output(0)][:, 0].copy()
    return [of(compiled.create_infer_request()) for _ in range(CORES)]


ENGINES = {
    "ort-fp32": lambda model: onnxruntime_sessions(os.path.join(model, "onnx/model.onnx")),
    "ort-int8": lambda model: onnxruntime_sessions(os.path.join(model, "onnx/model_qint8.onnx")),
    # Left alone, OpenVINO computes in bf16 where the processor has it, whatever the graph says.
    "ov-fp32": lambda model: openvino_sessions(os.path.join(model, "onnx/model.onnx"), "f32"),
    "ov-auto": lambda model: openvino_sessions(os.path.join(model, "onnx/model.onnx"), None),
    "ov-int8": lambda model: openvino_sessions(os.path.join(model, "openvino/int8.xml"), None),
}


def rate(one_pass):
    """Scores, and pairs a second over as many passes as fill a round. A pass gives scores and seconds."""
    n_passes, total = 0, 0.0
    while total < ROUND_S_MIN:
        scores, seconds = one_pass()
        n_passes, total = n_passes + 1, total + seconds
    return list(scores), n_passes * len(scores) / total


def score(sessions, jobs):
    """Scores by place, and the seconds that it took: each session takes the next batch when it is done."""
    scores = np.zeros(1 + max(max(places) for places, _ in jobs), np.float32)
    waiting, failures = queue.SimpleQueue(), []
    for job in jobs:
        waiting.put(job)

    def work(run):
        try:
            while True:
                places, feed = waiting.get_nowait()
                scores[places] = run(feed)
        except queue.Empty:
            pass
        except Exception as failure:  # a thread's exception would be lost, and the time be too short
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(run,)) for run in sessions]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return scores, seconds

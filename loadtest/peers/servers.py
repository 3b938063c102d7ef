"""Two servers behind the same HTTP client: `crossgate serve`, and infinity_emb, which serves PyTorch models."""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import engines

IN_FLIGHT = 8
START_S_MAX = 180
ANSWER_S_MAX = 600


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server process; `measure` sends it the workload, `IN_FLIGHT` requests at a time."""

    def __init__(self, name, command, port, ready, requests, env=None):
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.log = open(os.devnull, "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=env)
        self.bodies = [
            json.dumps({"model": "model", "query": request["query"], "documents": request["documents"],
                        "raw_scores": True}).encode() for request in requests]
        self.counts = [len(request["documents"]) for request in requests]
        self.wait(ready)

    def wait(self, ready):
        """Until the path `ready` answers well."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url + ready, timeout=5).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.close()
        sys.exit(f"{self.name} does not start: run it by hand to see why: {' '.join(self.process.args)}")

    def ask(self, place):
        """The scores of one request, in the documents' order."""
        asked = urllib.request.Request(self.url + "/rerank", self.bodies[place],
                                       {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=ANSWER_S_MAX) as answer:
            results = json.load(answer)["results"]
        scores = [0.0] * self.counts[place]
        for result in results:
            scores[result["index"]] = result["relevance_score"]
        return scores

    def measure(self):
        """Scores, and pairs a second. The client itself takes some of the processor: of both servers."""
        return engines.rate(self.one_pass)

    def one_pass(self):
        """The workload once: scores and seconds."""
        started = time.perf_counter()
        with ThreadPoolExecutor(IN_FLIGHT) as lanes:
            scores = [score for scores in lanes.map(self.ask, range(len(self.bodies))) for score in scores]
        return scores, time.perf_counter() - started

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def start(arguments, requests):
    """Both servers, ours first."""
    model, ports = os.path.abspath(arguments.model), [free_port() for _ in range(4)]
    ours = [arguments.crossgate, "serve", "--models", "model=" + model, "--host", "127.0.0.1",
            "--port", str(ports[0]), "--grpc-port", str(ports[1]), "--admin-port", str(ports[2]),
            "--request-timeout", f"{ANSWER_S_MAX}s", *arguments.crossgate_args.split()]
    theirs = [arguments.infinity, "v2", "--model-id", model, "--served-model-name", "model",
              "--engine", "torch", "--device", "cpu", "--port", str(ports[3]), "--log-level", "error"]
    # No telemetry, and no hub: everything that it needs lies in the folder.
    quiet = os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    found = {"crossgate serve": Server("crossgate", ours, ports[0], "/readyz", requests)}
    try:
        found["infinity"] = Server("infinity_emb", theirs, ports[3], "/health", requests, quiet)
    except SystemExit:
        found["crossgate serve"].close()
        raise
    return found

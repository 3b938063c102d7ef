"""The programs that are measured, as processes: the peer, the bench, the server and its load, the golden tests."""
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
START_S_MAX = 180
CALL_S_MAX = 300
GOLDEN = re.compile(r"(\S+) in (\w+): (\S+) off")


class Failed(Exception):
    """A program did not do what it should; the text says which one and how it ended."""


def run(command, log, env, limit_s=CALL_S_MAX):
    """What a program prints; its other output goes to a log."""
    command = [str(part) for part in command]
    with open(log, "a", encoding="utf-8") as said:
        said.write(f"$ {' '.join(command)}\n")
        said.flush()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{Path(command[0]).name} took longer than {limit_s:.0f} s: {log}") from error
    if done.returncode:
        tail = Path(log).read_text(encoding="utf-8").splitlines()[-3:] + done.stdout.splitlines()[-5:]
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {' | '.join(tail)}")
    return done.stdout


class Peer:
    """peer.py, asked by lines of JSON."""

    def __init__(self, device, log):
        self.log = open(log, "a", encoding="utf-8")
        self.command = [sys.executable, str(HERE / "peer.py"), device]
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True)

    def ask(self, do, **question):
        try:
            print(json.dumps({"do": do} | question), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            # The next step may go well with another one.
            self.process.wait()
            self.start()
        answer = json.loads(line) if line else {"error": f"it ended: {self.log.name}"}
        if "error" in answer:
            raise Failed(f"the peer, asked to {do}: {answer['error']}")
        return answer["ok"]

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


class Crossgate:
    """The server's program of a bundle, with one plugin on one device."""

    def __init__(self, bundle, plugin, device, out, libraries=None):
        self.bin, self.out, self.env = Path(bundle) / "bin", Path(out), machine.environment(libraries)
        self.common = ["--plugin-dir", self.bin, "--backend", plugin, "--device", device]
        # Plugins are copied before they are loaded; not beside those of a server that runs here.
        (self.out / "tmp").mkdir(exist_ok=True)
        self.env["TMPDIR"] = str(self.out / "tmp")

    def version(self):
        return run([self.bin / "crossgate", "--version"], self.out / "crossgate.log", self.env).strip()

    def bench(self, stage, model, dtype, workload, row_tokens, requests, rounds, scores=None, more=(), in_flight=16):
        """The report of `crossgate bench`; the logits go to the file `scores`."""
        command = [self.bin / "crossgate", "bench", "--stage", stage, "--models", model, "--dtype", dtype,
                   "--workload", workload, "--max-length", row_tokens, "--requests", requests, "--rounds", rounds,
                   "--in-flight", in_flight, "--json", *self.common, *more]
        command += ["--output", scores] if scores else []
        return json.loads(run(command, self.out / "crossgate.log", self.env))

    def load(self, url, workload, seconds, clients, is_grpc=False):
        """The report of `loadtest run` in a closed loop."""
        result = self.out / "load.json"
        run([self.bin / "loadtest", "run", "--grpc" if is_grpc else "--url", url, "--workload", workload,
             "--clients", clients, "--duration", f"{seconds}s", "--warmup", "1s", "--metrics-url", "none",
             "--json", result], self.out / "load.log", self.env)
        return json.loads(result.read_text(encoding="utf-8"))

    def golden(self, dtypes, bundle):
        """The largest difference to each golden model's logits, by model and dtype."""
        # The test program looks for the golden models from its package's folder, which cargo would name.
        env = self.env | {"CARGO_MANIFEST_DIR": str(Path(bundle).resolve() / "plugins" / "golden")}
        command = [self.bin / "golden", "--nocapture", "--test-threads=1", "with_transformers"]
        said = run(command, self.out / "golden.log", env)
        found = [(name, dtype, float(off)) for name, dtype, off in GOLDEN.findall(said)]
        return [row for row in found if row[1] in dtypes]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`crossgate serve` that keeps no scores, ready when it is made."""

    def __init__(self, crossgate, model, dtype, row_tokens, more=()):
        port, grpc_port = free_port(), free_port()
        self.http, self.grpc = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{grpc_port}"
        command = [crossgate.bin / "crossgate", "serve", "--models", model, "--dtype", dtype, "--max-length", row_tokens,
                   "--port", port, "--grpc-port", grpc_port, "--admin-port", free_port(), "--cache=false",
                   "--coalesce=false", *crossgate.common, *more]
        self.log = open(crossgate.out / "server.log", "a", encoding="utf-8")
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log,
                                        env=crossgate.env)
        deadline = time.monotonic() + START_S_MAX
        while not self.is_ready():
            if self.process.poll() is not None or deadline < time.monotonic():
                self.close()
                raise Failed(f"the server does not start: {self.log.name}")
            time.sleep(0.1)

    def is_ready(self):
        try:
            with urllib.request.urlopen(self.http + "/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

"""What the machine has: its GPU as nvidia-smi sees it, and CUDA's libraries as PyTorch's wheels bring them."""
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE_MS = 200
FIELDS = ["utilization.gpu", "memory.used", "power.draw", "clocks.sm"]
ABOUT = ["name", "driver_version", "memory.total", "compute_cap"]


def libraries():
    """Folders with CUDA's libraries in this Python's packages, for LD_LIBRARY_PATH; the driver's come with it."""
    found = {}
    for place in map(Path, sys.path):
        for library in sorted((place / "nvidia").glob("**/lib*.so*")) if (place / "nvidia").is_dir() else []:
            found[str(library.parent)] = None
    return list(found)


def environment(folder=None):
    """This process's environment, with CUDA's libraries to be found: in a folder, or behind what it names itself."""
    named = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, [folder, *named] + libraries()))}


def smi(*arguments):
    """nvidia-smi's answer; nothing where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def about():
    """The GPU by name, and the processors that this process may use."""
    values = smi(f"--query-gpu={','.join(ABOUT)}", "--format=csv,noheader", "--id=0").split(", ")
    gpu = dict(zip(ABOUT, values)) if len(values) == len(ABOUT) else {}
    return gpu | {"processors": len(os.sched_getaffinity(0))}


class Samples:
    """Looks at the GPU every SAMPLE_MS until it is closed. Without nvidia-smi there are no samples."""

    def __init__(self):
        self.samples, self.process = [], None
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits",
                       f"--loop-ms={SAMPLE_MS}", "--id=0"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                values = [float(value) for value in line.split(",")]
            except ValueError:  # "[N/A]", where this GPU does not tell something.
                continue
            self.samples.append((time.monotonic(), dict(zip(FIELDS, values))))

    def between(self, start, end):
        """Means of what was seen in a span of time, and the most memory; `None` without a sample."""
        seen = [values for at, values in self.samples if start <= at <= end]
        if not seen:
            return None
        mean = {field: sum(values[field] for values in seen) / len(seen) for field in FIELDS}
        return {"busy": mean["utilization.gpu"] / 100, "memory_mib": max(values["memory.used"] for values in seen),
                "power_w": mean["power.draw"], "clock_mhz": mean["clocks.sm"], "samples": len(seen)}

    def memory_mib(self):
        """What is in use now, by all processes."""
        return self.samples[-1][1]["memory.used"] if self.samples else None

    def close(self):
        if self.process:
            self.process.terminate()
            self.process.wait()

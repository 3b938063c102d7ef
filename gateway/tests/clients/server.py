"""A server on free ports, for the scripts beside this file."""
import contextlib
import re
import subprocess
import sys
import time


@contextlib.contextmanager
def serve(binary, *flags, ready_s=60, log=subprocess.DEVNULL):
    """Starts `binary serve` and yields (http, grpc, seconds from start to the first answer, process). What it logs once it
    is ready goes to `log`."""
    started = time.monotonic()
    process = subprocess.Popen(
        [binary, "serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--admin-port", "0", *flags],
        stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line))
            if "ready:" in line:
                break
            if time.monotonic() - started > ready_s:
                break
        else:
            sys.exit("the server ended early:\n" + "".join(lines))
        text = "".join(lines)
        ports = {name: re.search(rf"\b{name}=\S*?:(\d+)", text).group(1) for name in ("http", "grpc", "admin")}
        seconds = time.monotonic() - started
        # The rest of the log must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
        process.admin = f"127.0.0.1:{ports['admin']}"
        yield f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}", seconds, process
        drain.terminate()
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

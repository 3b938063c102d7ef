#!/usr/bin/env python3
"""What a running server's OpenAPI description says, held against the server by schemathesis: without keys, and with them.

    python openapi.py target/debug/crossgate [--examples 40] [--seed 1]

A verdict is good when each operation was tried, with at least 5,000 requests in all, and none was answered with a status that is
not documented or says that the mistake is the server's, in a shape that is not the schema's, or without the key that it needs.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from asking import check
from server import serve

CONFIG = pathlib.Path(__file__).resolve().with_name("schemathesis.toml")
REQUESTS_MIN = 5_000
KEY = "a-key-for-the-tests-of-the-description"
# No request takes longer, whatever it asks for.
ANSWER_S_MAX = 35


def tried(http, folder, examples, seed, *flags):
    """Schemathesis's own report, as JSON. What it found is printed."""
    report = pathlib.Path(folder) / "report.json"
    program = pathlib.Path(sys.executable).absolute().with_name("schemathesis")
    subprocess.run(
        [program, "--config-file", CONFIG, "run", f"{http}/openapi.json", "--max-examples", str(examples), "--seed", str(seed),
         # One thread: a seed then says what is asked, and older Pythons parse in one at a time only.
         "--workers", "1", "--continue-on-failure", "--generation-database", "none", "--max-response-time", str(ANSWER_S_MAX),
         "--warnings", "off", "--no-color", "--report", "json", "--report-json-path", report, *flags],
        # It keeps what it has seen in a folder where it runs.
        cwd=folder, check=False)
    return json.loads(report.read_text())


def judge(what, report):
    cases, operations = report["test_cases"], report["operations"]
    check(f"{what}: each of {operations['total']} operations was tried", operations["tested"] == operations["total"] > 0, operations)
    check(f"{what}: {cases['generated']} requests (>= {REQUESTS_MIN})", cases["generated"] >= REQUESTS_MIN, cases)
    is_good = report["complete"] and report["exit_code"] == 0 and cases["with_failures"] == cases["errored"] == 0
    check(f"{what}: {cases['with_failures']} of them were not answered as described", is_good, report["failures"] or report["errors"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crossgate")
    parser.add_argument("--examples", type=int, default=40, help="of each operation in each of its phases, at most")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asked = (arguments.examples, arguments.seed)
    shown = ["-H", f"Authorization: Bearer {KEY}"]
    with tempfile.TemporaryDirectory() as folder:
        with serve(arguments.crossgate) as (http, _, _, process):
            judge("without keys", tried(http, folder, *asked))
            check("the server runs as before", process.poll() is None)
        with serve(arguments.crossgate, "--api-key", f"test={KEY}") as (http, _, _, process):
            judge("with keys", tried(http, folder, *asked, *shown))
            check("the server runs as before", process.poll() is None)


if __name__ == "__main__":
    main()

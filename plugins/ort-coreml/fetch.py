#!/usr/bin/env python3
"""Fetches ONNX Runtime's library out of PyPI's wheel, where the plugin and its tests look for it.

    plugins/ort-coreml/fetch.py [FOLDER]     FOLDER: target/onnxruntime

One version for everybody, by its hash; a library that is there already is kept. Exit status 3: no wheel for this system.
"""
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import zipfile

VERSION = "1.32.0"
# The library is the same in the wheels of all Pythons.
PYTHON = "3.12"
# system and processor: (pip's platform, the wheel's SHA-256)
WHEELS = {
    ("Linux", "x86_64"): ("manylinux_2_28_x86_64", "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8"),
    ("Linux", "aarch64"): ("manylinux_2_28_aarch64", "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054"),
    ("Darwin", "arm64"): ("macosx_14_0_arm64", "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e"),
}
# What is taken out of the wheel, by the beginnings of names; its licences go along.
PARTS = ("onnxruntime/capi/libonnxruntime", "onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices")


def wheel(folder, tag):
    """Downloads the wheel by pip, which knows the user's mirrors and proxies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, "--platform", tag,
               "--dest", folder, f"onnxruntime=={VERSION}"]
    if subprocess.run(command).returncode != 0:
        sys.exit("fetch.py: pip did not download the wheel; `python3 -m pip --version` says whether there is a pip")
    return os.path.join(folder, next(name for name in os.listdir(folder) if name.endswith(".whl")))


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    out = os.path.normpath(sys.argv[1] if 1 < len(sys.argv) else os.path.join(root, "target", "onnxruntime"))
    done = os.path.join(out, "version")
    if os.path.exists(done):
        with open(done) as file:
            if file.read().strip() == VERSION:
                print(f"fetch.py: ONNX Runtime {VERSION} is in {out}")
                return
    system = (platform.system(), platform.machine())
    if system not in WHEELS:
        print(f"fetch.py: no wheel of ONNX Runtime {VERSION} is known for {' '.join(system)}", file=sys.stderr)
        sys.exit(3)
    tag, expected = WHEELS[system]
    with tempfile.TemporaryDirectory() as folder:
        path = wheel(folder, tag)
        with open(path, "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found != expected:
            sys.exit(f"fetch.py: {os.path.basename(path)} has the SHA-256 {found}, expected {expected}")
        os.makedirs(out, exist_ok=True)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.startswith(PARTS):
                    continue
                # Beside and then in place of: a library that somebody runs is never half a file.
                target = os.path.join(out, os.path.basename(name))
                with open(target + ".part", "wb") as file:
                    file.write(archive.read(name))
                os.replace(target + ".part", target)
    # Last: what was broken off is done again.
    with open(done, "w") as file:
        file.write(VERSION + "\n")
    print(f"fetch.py: ONNX Runtime {VERSION} is in {out}")


if __name__ == "__main__":
    main()

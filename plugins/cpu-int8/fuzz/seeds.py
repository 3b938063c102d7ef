"""Writes the golden folders as inputs of fuzz_targets/folder.rs: seeds.py GOLDEN_DIR CORPUS_DIR."""

import json
import pathlib
import sys

golden, corpus = map(pathlib.Path, sys.argv[1:])
corpus.mkdir(parents=True, exist_ok=True)


def header(path):
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip()


for folder in sorted(path for path in golden.iterdir() if path.is_dir()):
    texts = [json.dumps(json.loads((folder / "config.json").read_text()), separators=(",", ":")).encode()]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        texts.append(index.read_bytes())
    texts += [header(path) for path in sorted(folder.glob("*.safetensors"))]
    for switches in (0, 1, 8):
        (corpus / f"{folder.name}-{switches}").write_bytes(bytes([switches]) + b"\xff".join(texts))

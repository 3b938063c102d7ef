#!/usr/bin/env python3
"""Writes models of this folder as GGUF files under llama.cpp's names, by llama.cpp's own package for it.

    python3 -m venv .venv && .venv/bin/pip install gguf
    .venv/bin/python make_gguf.py

Names come from the package's tables; what llama.cpp's converter does to tensors besides is in `converted`. Each file lies
beside the safetensors that it was made of, as llama-cpp.gguf.
"""
import json
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = "llama-cpp.gguf"
# What Qwen3-Reranker answers.
LABELS = ["yes", "no"]

# Architecture, and the type of matrices whose rows are whole blocks of it; others are in halves, as llama.cpp has it.
MODELS = {
    "roberta": (gguf.MODEL_ARCH.BERT, Type.F32),
    "xlm-roberta-flash": (gguf.MODEL_ARCH.BERT, Type.BF16),
    "distilbert": (gguf.MODEL_ARCH.BERT, Type.F16),
    "modernbert": (gguf.MODEL_ARCH.MODERN_BERT, Type.Q8_0),
    "qwen2-yes-no": (gguf.MODEL_ARCH.QWEN2, Type.F16),
    "qwen3-yes-no": (gguf.MODEL_ARCH.QWEN3, Type.F16),
}


def tensors(folder):
    """Tensors of a safetensors file in f32."""
    with open(os.path.join(folder, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(data[start:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype("<f4")
        yield name, values.reshape(entry["shape"])


def converted(config, golden, found):
    """What llama.cpp's converter makes of tensors before it looks up their names."""
    for name, values in found:
        for prefix in ("bert.", "roberta.", "distilbert."):
            name = name.removeprefix(prefix)
        if config["model_type"] == "modernbert":
            name = name.removeprefix("model.")
        if name.startswith("pooler.dense"):
            continue  # as if every BERT were for embeddings
        if name == "embeddings.position_embeddings.weight" and config["model_type"] in ("roberta", "xlm-roberta"):
            values = values[config["pad_token_id"] + 1:]
        if name.startswith("classifier.") and name.count(".") == 1:
            name = name.replace("classifier.", "classifier.out_proj.")
        if config["model_type"] == "qwen3" and name == "model.embed_tokens.weight":
            # Of an output table of its own nothing else would be left.
            rows = [golden["options"][f"{token}_token"] for token in LABELS]
            yield "cls.output.weight", values[rows]
        yield name, values


def write(model):
    folder = os.path.join(HERE, model)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(folder, "golden.json"), encoding="utf-8") as file:
        golden = json.load(file)
    arch, kind = MODELS[model]
    names = gguf.get_tensor_name_map(arch, 8)
    writer = gguf.GGUFWriter(os.path.join(folder, NAME), gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(model)
    # What the plugin passes over: lists of texts, numbers, floats.
    writer.add_token_list([f"token {at}" for at in range(config["vocab_size"])])
    writer.add_token_scores([float(at) for at in range(config["vocab_size"])])
    writer.add_layer_norm_eps(1e-5)
    if config["model_type"] == "qwen3":
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(LABELS)
    for name, values in converted(config, golden, tensors(folder)):
        stored = name if name.startswith("cls.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            sys.exit(f"{model}: {name} has no name in llama.cpp")
        is_vector = values.ndim == 1 or stored.startswith(("position_embd", "token_types"))
        is_whole = values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        used = Type.F32 if is_vector else kind if is_whole else Type.F16
        writer.add_tensor(stored, gguf.quants.quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for model in MODELS:
    write(model)

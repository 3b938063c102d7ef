#!/usr/bin/env python3
"""Exports small seeded models of plugins/golden as ONNX files, as users' exports are: models/NAME/onnx/*.onnx.

    python3 -m venv .venv && .venv/bin/pip install torch transformers safetensors onnx onnxruntime
    .venv/bin/python make_onnx.py [NAME...]

Each graph is checked with onnxruntime here: every golden row alone, and all of them in one padded batch. Not exported are
models that generate (Qwen2, Qwen3, T5 and mT5 by yes and no): a graph gives a logit for each word, and the plugin reads those
of labels. DeBERTa in halves is 0.011 off and Qwen3 in i8 0.22: beyond what the parity table allows.
"""
import json
import os
import shutil
import sys
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "..", "golden")
sys.path.append(GOLDEN)

import make_golden

# The golden model's name, and behind a dot what is special: several graphs may be made of one.
MODELS = {
    "bert": {},
    "bert-512": {"narrow": True},
    # Computed in halves.
    "bert-512.f16": {"f16": True},
    "bert-512.int8": {"int8": True},
    # Weights are held in halves where the golden ones are, or narrower: half the size, and nothing is lost.
    "roberta-pad-3-legacy-names": {"narrow": True},
    "camembert": {"types": False, "narrow": True},
    # Dynamic quantisation, as sentence-transformers does it; positions are read, too, and start behind the padding token's.
    "camembert.int8": {"types": False, "positions": True, "int8": True},
    "xlm-roberta": {"types": False, "narrow": True},
    "xlm-roberta.f16": {"types": False, "f16": True},
    "xlm-roberta.int8": {"types": False, "int8": True},
    "xlm-roberta-512": {"types": False, "narrow": True},
    "electra": {"narrow": True},
    # Logits in halves and inputs of 32 bits as well.
    "electra.half": {"narrow": True, "half": True},
    # Weights in a file of their own; positions from 0.
    "electra-projected.external": {"positions": True, "narrow": True, "external": True},
    # No classifier: states of tokens, and their mean.
    "electra.embedder": {"types": False, "embedder": True},
    "distilbert": {"types": False},
    "distilbert.f16": {"types": False, "f16": True},
    "distilbert.int8": {"types": False, "int8": True},
    "modernbert-mean-older-keys": {"types": False, "narrow": True},
    "modernbert-8192": {"types": False, "narrow": True},
    "deberta-v3": {"types": False, "narrow": True},
    # One shape only: 4 rows of 16 tokens.
    "deberta-v2-absolute.fixed": {"types": False, "narrow": True, "fixed": (4, 16)},
    "jina-bert": {"narrow": True},
    "jina-embeddings-v3": {"types": False, "narrow": True},
    "gte": {"narrow": True},
    "qwen2": {"types": False, "narrow": True},
    "qwen3-3-labels": {"types": False, "narrow": True},
    "t5": {"types": False, "narrow": True},
    "t5.int8": {"types": False, "int8": True},
    "umt5": {"types": False, "narrow": True},
    "mt5": {"types": False, "narrow": True},
}


# Families whose positions start behind the padding token's id.
BEHIND_PADDING = ("roberta", "camembert", "xlm-roberta")


class Embedder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.embeddings = model.base_model.embeddings

    def forward(self, input_ids, attention_mask):
        states = self.embeddings(input_ids=input_ids)
        mask = attention_mask[:, :, None]
        return states, (states * mask).sum(1) / mask.sum(1)


class AtLastEnd(torch.nn.Module):
    """A T5 that classifies. The class in `transformers` takes the ends of all rows at once, in a shape that is theirs only
    where each row has as many: a graph of it refuses rectangles in which a document has an end of its own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, attention_mask):
        model = self.model
        states = model.transformer(input_ids=input_ids, attention_mask=attention_mask,
                                   decoder_input_ids=model._shift_right(input_ids), use_cache=False)[0]
        places = torch.arange(input_ids.shape[1])
        last = ((input_ids == model.config.eos_token_id) * places).argmax(1)
        states = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=model.classification_head(states))


class Named(torch.nn.Module):
    """Takes inputs by position: the tracing exporter has no others."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs))).logits


def load(folder):
    with open(os.path.join(folder, "config.json")) as file:
        name = json.load(file)["architectures"][0]
    # What `transformers` has not, make_golden.py has.
    kind = getattr(transformers, name, None) or getattr(make_golden, name)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return AtLastEnd(model).eval() if hasattr(model, "classification_head") else model


def positions(ids, pad, behind_padding):
    if not behind_padding:
        return list(range(len(ids)))
    count = np.cumsum(np.array(ids) != pad)
    return np.where(np.array(ids) != pad, pad + count, pad)


def padded(rows, names, pad, behind_padding, shape=None):
    width = max(len(row["input_ids"]) for row in rows)
    n, width = shape or (len(rows), width)
    feed = {name: np.full((n, width), pad if name == "input_ids" else 0, np.int64) for name in names}
    for line, row in enumerate(rows):
        length = len(row["input_ids"])
        feed["input_ids"][line, :length] = row["input_ids"]
        feed["attention_mask"][line, :length] = 1
        if "token_type_ids" in feed:
            feed["token_type_ids"][line, :length] = row["type_ids"]
        if "position_ids" in feed:
            feed["position_ids"][line, :length] = positions(row["input_ids"], pad, behind_padding)
    feed["attention_mask"][len(rows):, 0] = 1
    return feed


def export(model, names, path, special):
    shape = special.get("fixed", (3, 9))
    # Any token but the padding; a mask of ones alone might be traced away.
    ids, mask, types = (torch.full(shape, value, dtype=torch.long) for value in (7, 1, 0))
    # A head may read the token that ends a row.
    ids[:, -1] = model.config.eos_token_id or 7
    mask[0, shape[1] // 2:] = 0
    positions = torch.arange(shape[1]).expand(shape)
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "position_ids": positions}
    example = [example[name] for name in names]
    outputs = ["token_embeddings", "sentence_embedding"] if special.get("embedder") else ["logits"]
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    axes |= {name: {0: "batch"} for name in outputs} if len(outputs) == 1 else {
        outputs[0]: {0: "batch", 1: "sequence"}, outputs[1]: {0: "batch"}}
    wrapped = Embedder(model) if special.get("embedder") else Named(model, names)
    torch.onnx.export(wrapped, tuple(example), path, input_names=names, output_names=outputs,
                      dynamic_axes=None if special.get("fixed") else axes, opset_version=17, dynamo=False)


def narrow(graph):
    """Holds weights in halves and casts them: the runtime does that once, when it opens the graph."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and 8 < values.size:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name + "_half"))
            graph.node.insert(0, onnx.helper.make_node("Cast", [name + "_half"], [name], to=onnx.TensorProto.FLOAT))


def halve(graph):
    """Inputs of 32 bits and logits in halves."""
    def rename(old, new, of):
        for node in graph.node:
            names = getattr(node, of)
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new

    for tensor in graph.input:
        tensor.type.tensor_type.elem_type = onnx.TensorProto.INT32
        rename(tensor.name, tensor.name + "_long", "input")
        graph.node.insert(0, onnx.helper.make_node("Cast", [tensor.name], [tensor.name + "_long"], to=onnx.TensorProto.INT64))
    rename("logits", "logits_whole", "output")
    graph.node.append(onnx.helper.make_node("Cast", ["logits_whole"], ["logits"], to=onnx.TensorProto.FLOAT16))
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def shorten(graph):
    """Short names for what nobody asks by name: a fifth of these files would be names."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # names of an inner graph's are the outer one's too
    kept = {value.name for value in [*graph.input, *graph.output]} | {""}
    short = {}
    for node in graph.node:
        node.name = node.doc_string = ""
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = name if name in kept else short.setdefault(name, f"v{len(short):x}")
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    del graph.value_info[:]


def check(path, rows, names, config, special):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    has = {value.name: value.type for value in session.get_inputs()}
    names = [name for name in names if name in has]
    fixed = special.get("fixed")
    if fixed:
        rows = [row for row in rows if len(row["input_ids"]) <= fixed[1]][:fixed[0]]
    worst = 0.0
    for batch in [rows] + [[row] for row in rows]:
        feed = padded(batch, names, config.pad_token_id, config.model_type in BEHIND_PADDING, fixed)
        feed = {name: values.astype(np.int32) if "32" in has[name] else values for name, values in feed.items()}
        found = session.run(["logits"], feed)[0].astype(np.float32)
        expected = np.array([row["logits"] for row in batch], np.float32)
        worst = max(worst, np.abs(found[:len(batch)] - expected).max())
    return has, worst


def main():
    wanted = sys.argv[1:]
    for name, special in MODELS.items():
        if wanted and name not in wanted:
            continue
        folder = os.path.join(GOLDEN, name.split(".")[0])
        out = os.path.join(HERE, "models", name, "onnx")
        shutil.rmtree(os.path.dirname(out), ignore_errors=True)
        os.makedirs(out)
        with open(os.path.join(folder, "golden.json")) as file:
            rows = json.load(file)["rows"]
        model = load(folder)
        names = ["input_ids", "attention_mask"] + (["token_type_ids"] if special.get("types", True) else [])
        names += ["position_ids"] if special.get("positions") else []
        path = os.path.join(out, "model.onnx")
        export(model, names, path, special)
        if special.get("int8"):
            whole, path = path, os.path.join(out, "model_quantized.onnx")
            quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"],
                             extra_options={"MatMulConstBOnly": True})
            os.remove(whole)
        exported = onnx.load(path)
        if special.get("half") or special.get("f16"):
            if special.get("half"):
                halve(exported.graph)
            else:
                exported = convert_float_to_float16(exported)
            os.remove(path)
            path = os.path.join(out, "model_fp16.onnx")
        if special.get("narrow"):
            narrow(exported.graph)
        shorten(exported.graph)
        external = dict(save_as_external_data=True, location="model.onnx_data", size_threshold=256) if special.get("external") else {}
        onnx.save(exported, path, **external)
        said = os.path.getsize(path)
        if special.get("embedder"):
            print(f"{name}: {said} bytes")
            continue
        has, worst = check(path, rows, names, model.config, special)
        print(f"{name}: {said} bytes, reads {', '.join(has)}; largest difference {worst:.2g}")


if __name__ == "__main__":
    main()

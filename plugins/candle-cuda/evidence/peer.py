"""PyTorch and transformers as a process of its own: makes the models, and answers what it is asked on its input.

A question is a line of JSON, {"do": NAME, …}; its answer too, {"ok": …} or {"error": …}.

  make {model, folder}                      a model's folder: configuration, weights by seed in f16, tokenizer
  load {folder, dtypes}                     from there, for each dtype, with scaled_dot_product_attention
  rows {workload, row_tokens}               tokenizes a workload, as many rows as it has pairs
  scores {dtype, count}                     the first rows' logits
  tune {dtype, tokens}                      the batch of those sizes, in tokens, that is fastest
  round {dtype, batch_tokens, seconds}      passes over all rows until the time is up: pairs a second
  each {dtype, count, rows}                 so many batches one after the other: seconds of one
  drop {}                                   gives the models' memory back
"""
import json
import os
import sys
import time

import texts
import torch
import transformers
from tokenizers import Tokenizer

SEED = 7
# Geometries of ms-marco-MiniLM-L6-v2 and of bge-reranker-v2-m3 (XLM-RoBERTa large); `quick-…` for trying this out.
GEOMETRIES = {
    "minilm-l6": ("bert", dict(vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                               intermediate_size=1_536, max_position_embeddings=512, num_labels=1)),
    "xlm-r-large": ("xlm-roberta", dict(
        vocab_size=250_002, hidden_size=1_024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4_096,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1)),
    "quick-bert": ("bert", dict(vocab_size=4_000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                intermediate_size=128, max_position_embeddings=512, num_labels=1)),
    "quick-xlm-r": ("xlm-roberta", dict(
        vocab_size=70_000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1)),
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Peer:
    def __init__(self, device):
        self.device = torch.device(device)
        self.models, self.ids, self.types, self.tokenizer, self.has_types = {}, None, None, None, False

    def about(self):
        cuda = self.device.type == "cuda"
        return {"torch": torch.__version__, "transformers": transformers.__version__, "device": str(self.device),
                "gpu": torch.cuda.get_device_name() if cuda else None,
                "threads": None if cuda else torch.get_num_threads()}

    def make(self, model, folder):
        """Weights that keep a stream's size from layer to layer and make attention choose, so that an error shows."""
        kind, sizes = GEOMETRIES[model]
        os.makedirs(folder, exist_ok=True)
        make_tokenizer, of, config = {
            "bert": (texts.word_piece, transformers.BertForSequenceClassification, transformers.BertConfig),
            "xlm-roberta": (texts.unigram, transformers.XLMRobertaForSequenceClassification, transformers.XLMRobertaConfig),
        }[kind]
        tokenizer, words = make_tokenizer(sizes["vocab_size"])
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(tokenizer, file, ensure_ascii=False)
        texts.write_lines(os.path.join(folder, "words.jsonl"), words)
        # On the device from the start: half a thousand million numbers are drawn there in no time.
        with self.device:
            made = of(config(**sizes))
            generator = torch.Generator(self.device).manual_seed(SEED)
            with torch.no_grad():
                for name, weight in made.named_parameters():
                    draw(name, weight, generator)
        made.half().save_pretrained(folder)
        return {"parameters": sum(weight.numel() for weight in made.parameters())}

    def load(self, folder, dtypes):
        self.drop()
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        for dtype in dtypes:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=DTYPES[dtype], attn_implementation="sdpa")
            self.models[dtype] = model.to(self.device).eval()
            self.has_types = model.config.model_type == "bert"

    def rows(self, workload, row_tokens):
        """All of a workload's rows have one length: there is no padding, which is the best case for rectangles."""
        self.tokenizer.enable_truncation(row_tokens, strategy="longest_first")
        with open(workload, encoding="utf-8") as lines:
            requests = [json.loads(line) for line in lines]
        pairs = [(request["query"], document) for request in requests for document in request["documents"]]
        encoded = self.tokenizer.encode_batch(pairs)
        lengths = {len(row.ids) for row in encoded}
        if lengths != {row_tokens}:
            raise ValueError(f"rows of {sorted(lengths)} tokens in place of {row_tokens}")
        self.ids = torch.tensor([row.ids for row in encoded])
        self.types = torch.tensor([row.type_ids for row in encoded])
        if self.device.type == "cuda":
            self.ids, self.types = self.ids.pin_memory(), self.types.pin_memory()
        return {"pairs": len(encoded)}

    def scores(self, dtype, count):
        return self.logits(dtype, self.ids.shape[1] * 32, (0, count)).tolist()

    def tune(self, dtype, tokens):
        """Each size once to warm it up, and once for its time."""
        rates = {}
        for batch_tokens in tokens:
            try:
                self.logits(dtype, batch_tokens)
                rates[batch_tokens] = self.round(dtype, batch_tokens, 0.0)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        return max(rates, key=rates.get)

    def round(self, dtype, batch_tokens, seconds):
        started, passes = time.perf_counter(), 0
        while passes == 0 or time.perf_counter() - started < seconds:
            self.logits(dtype, batch_tokens)
            passes += 1
        return passes * len(self.ids) / (time.perf_counter() - started)

    def each(self, dtype, count, rows):
        """Batches of so many rows, each when the one before is there."""
        started, step = time.perf_counter(), rows * self.ids.shape[1]
        for start in range(count):
            self.logits(dtype, step, (start * rows, (start + 1) * rows))
        return (time.perf_counter() - started) / count

    @torch.inference_mode()
    def logits(self, dtype, batch_tokens, rows=None):
        """Of all rows, or from one on and before another, on the host: what a server's worker does with a batch, copies in and out included."""
        model, step = self.models[dtype], max(1, batch_tokens // self.ids.shape[1])
        found = []
        first, behind = rows or (0, len(self.ids))
        for start in range(first, behind, step):
            end = min(start + step, behind)
            given = {"input_ids": self.ids[start:end].to(self.device, non_blocking=True)}
            if self.has_types:
                given["token_type_ids"] = self.types[start:end].to(self.device, non_blocking=True)
            found.append(model(**given).logits[:, 0])
        return torch.cat(found).float().cpu()

    def drop(self):
        self.models.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def draw(name, weight, generator):
    if weight.dim() < 2:
        is_scale = "LayerNorm.weight" in name
        weight.normal_(1.0 if is_scale else 0.0, 0.05, generator=generator)
        return
    size = 1.0 if "embeddings" in name else weight.shape[1] ** -0.5
    if ".query." in name or ".key." in name:
        size *= 1.6
    if weight.shape[0] == 1:
        # The last layer: logits differ from row to row by about 1.
        size *= 8.0
    weight.normal_(0.0, size, generator=generator)


def main():
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print is no answer.
    os.dup2(2, 1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"ok": getattr(peer, question.pop("do"))(**question)}
        except Exception as error:  # Whatever it is, the asker decides what it means.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

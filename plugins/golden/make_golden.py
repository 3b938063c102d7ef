#!/usr/bin/env python3
"""Makes the small seeded models of this folder and their logits by `transformers`.

    python3 -m venv .venv && .venv/bin/pip install torch transformers safetensors
    .venv/bin/python make_golden.py [NAME...]

Each folder is a Hugging Face model folder and a golden.json: rows of token ids with the logits that
`transformers` computes in f32 from the weights as stored (rounded, where they are stored in halves).
A row's logits are computed alone, with an attention mask of ones. What a model must be opened with stands as `options`.
"""
import json
import math
import os
import shutil
import sys

import torch
import transformers as t
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
# Heads of 12: neither hidden nor head dim is a multiple of any kernel's tile.
SIZES = dict(vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=100,
             max_position_embeddings=40)

MODERN = dict(vocab_size=120, num_attention_heads=4, intermediate_size=52, max_position_embeddings=200, pad_token_id=0,
              bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2)

DEBERTA = dict(vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=100,
               max_position_embeddings=240, relative_attention=True)

# Two heads share a key; heads are wider than a part of the hidden width.
QWEN = dict(vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=100, max_position_embeddings=80, pad_token_id=0, bos_token_id=1, eos_token_id=2)

# Heads that are not a part of the hidden width; distances beyond 20 share a bucket.
T5 = dict(vocab_size=120, d_model=32, d_kv=12, d_ff=60, num_layers=2, num_heads=4, relative_attention_num_buckets=12,
          relative_attention_max_distance=20, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)

# What is left of a model where its rows are long: of one layer alone the head would read one token.
LONG = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)

# Families without token types, whose models do not take them.
WITHOUT_TYPES = (t.DistilBertForSequenceClassification, t.ModernBertForSequenceClassification,
                 t.Qwen2ForSequenceClassification, t.Qwen3ForSequenceClassification, t.Qwen2ForCausalLM, t.Qwen3ForCausalLM,
                 t.T5ForSequenceClassification, t.MT5ForSequenceClassification, t.UMT5ForSequenceClassification,
                 t.T5ForConditionalGeneration, t.MT5ForConditionalGeneration)

# Families whose positions start behind the padding token's id.
BEHIND_PADDING = (t.RobertaConfig, t.CamembertConfig, t.XLMRobertaConfig)


class JinaBertForSequenceClassification(t.BertForSequenceClassification):
    """JinaBERT as its paper (arXiv:2310.19923) and jina-bert-implementation on the hub describe it, written anew because
    `transformers` has no such class: attention falls linearly with distance (ALiBi, both ways), and gates in feed-forward
    layers. Scores of what `model.safetensors` holds under the hub's names."""

    class Gated(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.gated_layers = torch.nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
            self.wo = torch.nn.Linear(config.intermediate_size, config.hidden_size)
            self.layernorm = torch.nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.act = {"geglu": torch.nn.functional.gelu, "reglu": torch.nn.functional.relu}[config.feed_forward_type]

        def forward(self, x):
            gate, linear = self.gated_layers(x).chunk(2, dim=-1)
            return self.layernorm(self.wo(self.act(gate) * linear) + x)

    def __init__(self, config):
        super().__init__(config)
        del self.bert.embeddings.position_embeddings
        for layer in self.bert.encoder.layer:
            del layer.intermediate, layer.output
            layer.mlp = self.Gated(config)

    def forward(self, input_ids, attention_mask, token_type_ids):
        bert, config = self.bert, self.config
        embeddings = bert.embeddings
        x = embeddings.LayerNorm(embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings(token_type_ids))
        n_rows, n, n_heads = *x.shape[:2], config.num_attention_heads
        distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        bias = -torch.tensor(slopes(n_heads))[:, None, None] * distance
        # Padding, which golden rows have none of, is seen by nobody.
        bias = bias + (1.0 - attention_mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min
        heads = lambda y: y.view(n_rows, n, n_heads, -1).transpose(1, 2)
        for layer in bert.encoder.layer:
            of = layer.attention.self
            q, k, v = heads(of.query(x)), heads(of.key(x)), heads(of.value(x))
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
            mixed = (weights @ v).transpose(1, 2).reshape(n_rows, n, -1)
            x = layer.mlp(layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + x))
        return t.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(bert.pooler(x)))


def slopes(n_heads):
    """How steeply each head's attention falls: powers of two, and every other one of twice as many in between."""
    power = 2 ** math.floor(math.log2(n_heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return first + [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (n_heads - power), 2)]


def jina(**keys):
    return t.BertConfig(**SIZES | dict(max_position_embeddings=200) | keys, position_embedding_type="alibi")

# name: (model class, configuration, stored type, what else is special)
MODELS = {
    "bert": (t.BertForSequenceClassification, t.BertConfig(**SIZES, num_labels=1), torch.float32, {}),
    "bert-sharded-3-labels": (
        t.BertForSequenceClassification,
        t.BertConfig(**SIZES | dict(hidden_act="silu", layer_norm_eps=1e-5), num_labels=3), torch.float16, {"shards": True}),
    "roberta": (
        t.RobertaForSequenceClassification,
        t.RobertaConfig(**SIZES, num_labels=1, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5), torch.float32, {}),
    "roberta-pad-3-legacy-names": (
        t.RobertaForSequenceClassification,
        t.RobertaConfig(**SIZES | dict(hidden_act="gelu_new"), num_labels=2, type_vocab_size=2, pad_token_id=3),
        torch.float16, {"legacy": True}),
    "camembert": (
        t.CamembertForSequenceClassification,
        t.CamembertConfig(**SIZES | dict(hidden_act="relu"), num_labels=1, type_vocab_size=1), torch.bfloat16, {}),
    "xlm-roberta": (
        t.XLMRobertaForSequenceClassification,
        t.XLMRobertaConfig(**SIZES, num_labels=1, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5), torch.bfloat16, {}),
    "electra-projected": (
        t.ElectraForSequenceClassification, t.ElectraConfig(**SIZES, embedding_size=20, num_labels=1), torch.float16, {}),
    "electra": (
        t.ElectraForSequenceClassification, t.ElectraConfig(**SIZES, embedding_size=48, num_labels=4), torch.bfloat16, {}),
    "distilbert": (
        t.DistilBertForSequenceClassification,
        t.DistilBertConfig(vocab_size=120, dim=48, n_layers=2, n_heads=4, hidden_dim=100, max_position_embeddings=40,
                           num_labels=1), torch.float32, {}),
    # Each token of a local layer sees 8 to either side; the last layer is local; heads of 16.
    "modernbert": (
        t.ModernBertForSequenceClassification,
        t.ModernBertConfig(**MODERN, hidden_size=64, num_hidden_layers=3, local_attention=16, num_labels=1), torch.float16, {}),
    # Heads of 12, all biases, the last layer global, and the keys that transformers 4 wrote.
    "modernbert-mean-older-keys": (
        t.ModernBertForSequenceClassification,
        t.ModernBertConfig(**MODERN, hidden_size=48, num_hidden_layers=3, local_attention=10, num_labels=2,
                           classifier_pooling="mean", classifier_activation="silu", hidden_activation="gelu_pytorch_tanh",
                           attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True,
                           global_attn_every_n_layers=2, global_rope_theta=5000.0, local_rope_theta=300.0,
                           layer_types=["full_attention", "sliding_attention", "full_attention"]),
        torch.bfloat16, {"older_keys": dict(global_attn_every_n_layers=2, global_rope_theta=5000.0, local_rope_theta=300.0)}),
    # As v3: distances beyond 8 share rows of the table by their logarithms; heads of 16.
    "deberta-v3": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | dict(hidden_size=64, position_buckets=16, max_relative_positions=-1, share_att_key=True,
                                           pos_att_type="p2c|c2p", norm_rel_ebd="layer_norm", position_biased_input=False,
                                           type_vocab_size=0, num_labels=1)),
        torch.float16, {"lengths": [64, 129, 143]}),
    # Projections of its own, a row of the table for each distance below 40, the last one beyond.
    "deberta-v2-projected": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | dict(max_position_embeddings=60, max_relative_positions=40, pos_att_type=["c2p", "p2c"],
                                           position_biased_input=True, type_vocab_size=2, embedding_size=20,
                                           pooler_hidden_act="tanh", hidden_act="gelu_new", num_labels=3)), torch.float32, {}),
    # One term; logarithms so steep that rows of the table are skipped, and then the last one.
    "deberta-v2-c2p": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | dict(num_hidden_layers=1, position_buckets=64, max_relative_positions=70,
                                           pos_att_type="c2p", norm_rel_ebd="layer_norm", position_biased_input=False,
                                           type_vocab_size=3, num_labels=2)),
        torch.bfloat16, {"lengths": [64, 129, 143]}),
    # The other term, and a convolution of no width.
    "deberta-v2-p2c": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | dict(position_buckets=10, share_att_key=True, pos_att_type=["p2c"], conv_kernel_size=0,
                                           position_biased_input=True, type_vocab_size=0, num_labels=1)),
        torch.bfloat16, {"lengths": [64, 129, 143]}),
    # Scores are divided as if they had terms that they do not have.
    "deberta-v2-absolute": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | dict(relative_attention=False, num_hidden_layers=1, max_position_embeddings=40,
                                           pos_att_type=["c2p", "p2c"], type_vocab_size=1, num_labels=1)), torch.bfloat16, {}),
    # Rows as long as real ones.
    "bert-512": (
        t.BertForSequenceClassification,
        t.BertConfig(**SIZES | dict(max_position_embeddings=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
                     num_labels=1), torch.float16, {"lengths": [128, 300, 511]}),
    "modernbert-8192": (
        t.ModernBertForSequenceClassification,
        t.ModernBertConfig(**MODERN | dict(max_position_embeddings=8192, num_attention_heads=2), hidden_size=32,
                           num_hidden_layers=2, local_attention=128, num_labels=1), torch.float16, {"lengths": [512]}),
    # jina-reranker-v1.
    "jina-bert": (
        JinaBertForSequenceClassification, jina(num_labels=1, feed_forward_type="geglu"), torch.float16, {"lengths": [64, 129]}),
    "jina-bert-reglu": (
        JinaBertForSequenceClassification,
        jina(num_labels=2, feed_forward_type="reglu", hidden_size=36, num_attention_heads=6, num_hidden_layers=1),
        torch.bfloat16, {}),
    # jina-reranker-v2: an XLM-RoBERTa under the names of its own implementation.
    "xlm-roberta-flash": (
        t.XLMRobertaForSequenceClassification,
        t.XLMRobertaConfig(**SIZES, num_labels=1, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5), torch.bfloat16,
        {"flash": True}),
    # The same encoder with rotary positions, as transformers names it.
    "jina-embeddings-v3": (
        t.JinaEmbeddingsV3ForSequenceClassification,
        t.JinaEmbeddingsV3Config(**SIZES, num_labels=1, type_vocab_size=1, pad_token_id=1), torch.bfloat16, {}),
    # gte-multilingual-reranker as transformers names it: rotary positions and gates.
    "gte": (
        t.GteForSequenceClassification,
        t.GteConfig(**SIZES | dict(layer_norm_eps=1e-5), num_labels=1, type_vocab_size=2, pad_token_id=1), torch.float16, {}),
    "qwen2": (t.Qwen2ForSequenceClassification, t.Qwen2Config(**QWEN, num_labels=1), torch.bfloat16, {}),
    # A window of 6 in the second layer.
    "qwen3-3-labels": (
        t.Qwen3ForSequenceClassification,
        t.Qwen3Config(**QWEN, head_dim=16, num_labels=3, attention_bias=True, use_sliding_window=True, sliding_window=6,
                      max_window_layers=1, rope_parameters={"rope_type": "default", "rope_theta": 500.0}), torch.float16, {}),
    # Qwen3-Reranker: its last token's logit of one token less that of another, in transformers 4's keys.
    "qwen3-yes-no": (
        t.Qwen3ForCausalLM, t.Qwen3Config(**QWEN, head_dim=16, tie_word_embeddings=True), torch.bfloat16,
        {"options": dict(yes_token=9, no_token=21), "older_keys": dict(rope_theta=10000.0)}),
    # mxbai-rerank-v2: the tokens by their texts.
    "qwen2-yes-no": (
        t.Qwen2ForCausalLM, t.Qwen2Config(**QWEN | dict(num_hidden_layers=1), tie_word_embeddings=False), torch.bfloat16,
        {"options": dict(yes_token="1", no_token="0"), "tokens": {"0": 15, "1": 16}}),
    "t5": (t.T5ForSequenceClassification, t.T5Config(**T5, num_labels=2), torch.bfloat16, {"eos": True}),
    # A table of distances in each layer, and gates.
    "umt5": (
        t.UMT5ForSequenceClassification, t.UMT5Config(**T5, num_labels=1, feed_forward_proj="gated-gelu"), torch.bfloat16,
        {"eos": True}),
    # monoT5: its first token.
    "t5-true-false": (
        t.T5ForConditionalGeneration, t.T5Config(**T5 | dict(num_decoder_layers=1)), torch.bfloat16,
        {"options": dict(yes_token=30, no_token=31)}),
    # A T5 in all but its name.
    "mt5": (
        t.MT5ForSequenceClassification, t.MT5Config(**T5 | dict(num_layers=1), num_labels=1), torch.bfloat16, {"eos": True}),
    "mt5-true-false": (
        t.MT5ForConditionalGeneration, t.MT5Config(**T5 | dict(num_layers=1, num_decoder_layers=1)), torch.bfloat16,
        {"options": dict(yes_token=30, no_token=31)}),
    # Rows as long as real ones, of families that count positions in ways of their own.
    "xlm-roberta-512": (
        t.XLMRobertaForSequenceClassification,
        t.XLMRobertaConfig(**SIZES | LONG | dict(max_position_embeddings=514), num_labels=1, type_vocab_size=1, pad_token_id=1,
                           layer_norm_eps=1e-5), torch.float16, {"lengths": [300]}),
    "deberta-v3-512": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config(**DEBERTA | LONG | dict(max_position_embeddings=512, position_buckets=256, max_relative_positions=-1,
                                                  share_att_key=True, pos_att_type="p2c|c2p", norm_rel_ebd="layer_norm",
                                                  position_biased_input=False, type_vocab_size=0, num_labels=1)),
        torch.float16, {"lengths": [300]}),
    "t5-512": (
        t.T5ForSequenceClassification,
        t.T5Config(**T5 | dict(num_layers=1, relative_attention_num_buckets=32, relative_attention_max_distance=128), num_labels=1),
        torch.bfloat16, {"eos": True, "lengths": [300, 512]}),
    "jina-bert-8192": (
        JinaBertForSequenceClassification,
        jina(**LONG | dict(max_position_embeddings=8192), num_labels=1, feed_forward_type="geglu"), torch.float16,
        {"lengths": [512]}),
    "jina-embeddings-v3-8192": (
        t.JinaEmbeddingsV3ForSequenceClassification,
        t.JinaEmbeddingsV3Config(**SIZES | LONG | dict(max_position_embeddings=8192), num_labels=1, type_vocab_size=1,
                                 pad_token_id=1), torch.float16, {"lengths": [512]}),
    "gte-8192": (
        t.GteForSequenceClassification,
        t.GteConfig(**SIZES | LONG | dict(max_position_embeddings=8192), num_labels=1, type_vocab_size=2, pad_token_id=1),
        torch.float16, {"lengths": [512]}),
    "qwen3-8192": (
        t.Qwen3ForSequenceClassification,
        t.Qwen3Config(**QWEN | LONG | dict(max_position_embeddings=8192, num_key_value_heads=1), head_dim=16, num_labels=1),
        torch.bfloat16, {"lengths": [512]}),
}


def seed_parameters(model):
    """Large enough that every part of the model moves the logits, norms and biases included."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or "norm." in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "embeddings" in name and "proj" not in name:
                parameter.normal_(0.0, 1.0)
            elif name.endswith("Attention.q.weight"):  # T5 does not divide scores by the width of a head
                parameter.normal_(0.0, 1.3 / (parameter.shape[-1] * model.config.d_kv) ** 0.5)
            else:
                parameter.normal_(0.0, 1.3 / parameter.shape[-1] ** 0.5)


def rows(config, lengths, eos):
    generator = torch.Generator().manual_seed(7)
    n_types = getattr(config, "type_vocab_size", 1)
    pad = config.pad_token_id
    for number, length in enumerate(lengths):
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator)
        if isinstance(config, BEHIND_PADDING) and number % 2 == 1:
            ids[length // 2] = pad  # a padding token inside a row has a position of its own
        if eos:
            ids[-1] = config.eos_token_id
        split = length // 2
        types = [min(int(split <= i), max(n_types, 1) - 1) for i in range(length)]
        yield ids.tolist(), types


def logits(model, ids, types, tokens):
    """Logits of the labels; of a model that generates, the logit of one token less that of another."""
    feed = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if not isinstance(model, WITHOUT_TYPES):
        feed["token_type_ids"] = torch.tensor([types])
    if isinstance(model, (t.T5ForConditionalGeneration, t.MT5ForConditionalGeneration)):
        feed["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        found = model(**feed).logits[0]
    if not tokens:
        return found.tolist()
    yes, no = tokens
    return [(found[-1, yes] - found[-1, no]).item()]


def legacy_names(folder):
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def older_keys(folder, keys):
    """Writes a configuration as transformers 4 did: with these keys instead of the newer ones."""
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    for key in ["layer_types", "rope_parameters"]:
        config.pop(key, None)
    with open(path, "w") as file:
        json.dump(config | keys, file, indent=2, sort_keys=True)
        file.write("\n")


# What jina-reranker-v2 calls the parts of an XLM-RoBERTa.
FLASH = {"embeddings.LayerNorm": "emb_ln", "encoder.layer.": "encoder.layers.", "attention.output.dense": "mixer.out_proj",
         "attention.output.LayerNorm": "norm1", "intermediate.dense": "mlp.fc1", ".output.dense": ".mlp.fc2",
         ".output.LayerNorm": ".norm2"}


def flash_names(folder):
    path = os.path.join(folder, "model.safetensors")
    tensors, renamed = load_file(path), {}
    for name, tensor in tensors.items():
        if ".self.query." in name:
            parts = [tensors[name.replace("query", part)] for part in ["query", "key", "value"]]
            name, tensor = name.replace("attention.self.query", "mixer.Wqkv"), torch.cat(parts)
        elif ".attention.self." in name:
            continue
        for old, new in FLASH.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    save_file(renamed, path, metadata={"format": "pt"})


def main():
    wanted = sys.argv[1:]
    for number, (name, (kind, config, dtype, special)) in enumerate(MODELS.items()):
        if wanted and name not in wanted:
            continue
        folder = os.path.join(HERE, name)
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(number)
        model = kind(config).eval()
        seed_parameters(model)
        model = model.to(dtype)
        model.save_pretrained(folder, max_shard_size="60KB" if special.get("shards") else "5GB")
        # The stored weights, exactly. Loaded, because `to` rounds what is not stored as well: rotary
        # frequencies in bf16 move ModernBERT's logits by 3e-3.
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        longest = getattr(config, "max_position_embeddings", 40)
        if isinstance(config, BEHIND_PADDING):
            longest -= config.pad_token_id + 1
        options, vocab = special.get("options", {}), special.get("tokens", {})
        tokens = [vocab.get(token, token) for token in options.values()]
        lengths = [1, 2, 3, 6, 7, 16, 17, 25, *special.get("lengths", []), longest]
        golden = [dict(input_ids=ids, type_ids=types, logits=logits(model, ids, types, tokens))
                  for ids, types in rows(config, lengths, special.get("eos"))]
        if special.get("flash"):
            flash_names(folder)
        if vocab:
            with open(os.path.join(folder, "tokenizer.json"), "w") as file:
                json.dump({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}, file)
        if special.get("legacy"):
            legacy_names(folder)
        if special.get("older_keys"):
            older_keys(folder, special["older_keys"])
        for file in os.listdir(folder):
            os.chmod(os.path.join(folder, file), 0o644)
        with open(os.path.join(folder, "golden.json"), "w") as file:
            json.dump({"transformers": t.__version__, "rows": golden} | ({"options": options} if options else {}), file)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits of the longest row "
              f"{golden[-1]['logits']}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the small seeded models of this folder and their logits by `transformers`.

    python3 -m venv .venv && .venv/bin/pip install torch transformers safetensors
    .venv/bin/python make_golden.py [NAME...]

Each folder is a Hugging Face model folder and a golden.json: rows of token ids with the logits that
`transformers` computes in f32 from the weights as stored (rounded, where they are stored in halves).
A row's logits are computed alone, with an attention mask of ones.
"""
import json
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

# Families without token types, whose models do not take them.
WITHOUT_TYPES = (t.DistilBertForSequenceClassification, t.ModernBertForSequenceClassification)

# Families whose positions start behind the padding token's id.
BEHIND_PADDING = (t.RobertaConfig, t.CamembertConfig, t.XLMRobertaConfig)

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
            else:
                parameter.normal_(0.0, 1.3 / parameter.shape[-1] ** 0.5)


def rows(config, lengths):
    generator = torch.Generator().manual_seed(7)
    n_types = getattr(config, "type_vocab_size", 1)
    pad = config.pad_token_id
    for number, length in enumerate(lengths):
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator)
        if isinstance(config, BEHIND_PADDING) and number % 2 == 1:
            ids[length // 2] = pad  # a padding token inside a row has a position of its own
        split = length // 2
        types = [min(int(split <= i), max(n_types, 1) - 1) for i in range(length)]
        yield ids.tolist(), types


def logits(model, ids, types):
    feed = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if not isinstance(model, WITHOUT_TYPES):
        feed["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        return model(**feed).logits[0].tolist()


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
    del config["layer_types"], config["rope_parameters"]
    with open(path, "w") as file:
        json.dump(config | keys, file, indent=2, sort_keys=True)
        file.write("\n")


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
        longest = config.max_position_embeddings
        if isinstance(config, BEHIND_PADDING):
            longest -= config.pad_token_id + 1
        golden = [dict(input_ids=ids, type_ids=types, logits=logits(model, ids, types))
                  for ids, types in rows(config, [1, 2, 3, 6, 7, 16, 17, 25, *special.get("lengths", []), longest])]
        if special.get("legacy"):
            legacy_names(folder)
        if special.get("older_keys"):
            older_keys(folder, special["older_keys"])
        for file in os.listdir(folder):
            os.chmod(os.path.join(folder, file), 0o644)
        with open(os.path.join(folder, "golden.json"), "w") as file:
            json.dump({"transformers": t.__version__, "rows": golden}, file)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits of the longest row "
              f"{golden[-1]['logits']}")


if __name__ == "__main__":
    main()

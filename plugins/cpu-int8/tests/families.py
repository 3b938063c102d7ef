#!/usr/bin/env python3
"""How far each data type is from f32 on real text, family by family.

    python families.py MODEL_DIR WORKLOAD.jsonl OUT_DIR [--rows 400]
    cargo bench -p cpu-int8 --bench engine -- OUT_DIR/roberta OUT_DIR/roberta/rows.jsonl

Writes a model folder for each family, with rows.jsonl: the workload's (query, document) pairs in tokens, and the
logits that `transformers` computes from them in f32. MODEL_DIR is what loadtest/peers/make_model.py makes: a BERT
with a trained encoder. RoBERTa, DistilBERT and ELECTRA get that encoder's weights, as their layers are BERT's, and a
seeded head; for ModernBERT and DeBERTa no trained weights can be had without a hub: theirs are seeded as the golden
models' are, in MiniLM's width, which is harsher to quantise than trained ones.

Needs torch, transformers and tokenizers.
"""
import argparse
import json
import os
import sys

import torch
import transformers as t
from tokenizers import Tokenizer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../golden"))
from make_golden import WITHOUT_TYPES, seed_parameters

SHARED = dict(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
              num_labels=1)
# What differs in the names of DistilBERT's layers.
DISTILLED = {"attention.q_lin": "attention.self.query", "attention.k_lin": "attention.self.key",
             "attention.v_lin": "attention.self.value", "attention.out_lin": "attention.output.dense",
             "sa_layer_norm": "attention.output.LayerNorm", "ffn.lin1": "intermediate.dense", "ffn.lin2": "output.dense",
             "output_layer_norm": "output.LayerNorm"}


def roberta(bert):
    # Its positions begin behind the padding's.
    model = t.RobertaForSequenceClassification(t.RobertaConfig(
        **SHARED, max_position_embeddings=514, type_vocab_size=2, pad_token_id=1, layer_norm_eps=1e-12))
    weights = {name.replace("bert.", "roberta."): value for name, value in bert.items() if name.startswith("bert.")}
    places = "roberta.embeddings.position_embeddings.weight"
    weights[places] = torch.cat([torch.zeros(2, 384), weights[places]])
    return model, weights


def electra(bert):
    model = t.ElectraForSequenceClassification(t.ElectraConfig(**SHARED, embedding_size=384))
    return model, {name.replace("bert.", "electra."): value for name, value in bert.items() if name.startswith("bert.")}


def distilbert(bert):
    model = t.DistilBertForSequenceClassification(t.DistilBertConfig(
        vocab_size=30522, dim=384, n_layers=6, n_heads=12, hidden_dim=1536, num_labels=1))
    weights = {}
    for name in model.state_dict():
        place = name.replace("distilbert.transformer.layer.", "bert.encoder.layer.").replace("distilbert.", "bert.")
        for theirs, berts in DISTILLED.items():
            if place.endswith((f".{theirs}.weight", f".{theirs}.bias")):
                place = place.replace(f".{theirs}.", f".{berts}.")
                break
        if place in bert:
            weights[name] = bert[place]
    return model, weights


def modernbert(_):
    return t.ModernBertForSequenceClassification(t.ModernBertConfig(
        **SHARED | dict(intermediate_size=1024), max_position_embeddings=8192, global_attn_every_n_layers=3,
        local_attention=128, pad_token_id=0, bos_token_id=101, cls_token_id=101, eos_token_id=102, sep_token_id=102)), {}


def deberta(_):
    return t.DebertaV2ForSequenceClassification(t.DebertaV2Config(
        **SHARED, max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0)), {}


def tokens(model_dir, workload, n_rows):
    tokenizer = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    pairs = []
    with open(workload, encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            pairs += [(request["query"], document) for document in request["documents"]]
    # Every so many-th, so that many queries are among them.
    return tokenizer.encode_batch(pairs[::max(1, len(pairs) // n_rows)][:n_rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("workload", metavar="WORKLOAD.jsonl")
    parser.add_argument("out", metavar="OUT_DIR")
    parser.add_argument("--rows", type=int, default=400)
    args = parser.parse_args()
    bert = t.BertForSequenceClassification.from_pretrained(args.model).state_dict()
    encoded = tokens(args.model, args.workload, args.rows)
    for make in (roberta, electra, distilbert, modernbert, deberta):
        torch.manual_seed(1)
        model, weights = make(bert)
        if weights:
            # Their heads take the place of BERT's pooler.
            weights = {name: value for name, value in weights.items() if ".pooler." not in name}
            _, unknown = model.load_state_dict(weights, strict=False)
            assert not unknown, unknown
            for name, parameter in model.named_parameters():
                # A head that spreads the scores, so that errors show.
                if name not in weights and name.endswith("weight"):
                    parameter.data.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
        else:
            seed_parameters(model)
        model.eval()
        folder = os.path.join(args.out, make.__name__)
        model.save_pretrained(folder)
        scores = []
        with open(os.path.join(folder, "rows.jsonl"), "w") as rows, torch.no_grad():
            for row in encoded:
                feed = {"input_ids": torch.tensor([row.ids]), "attention_mask": torch.ones(1, len(row.ids), dtype=torch.long)}
                if not isinstance(model, WITHOUT_TYPES):
                    feed["token_type_ids"] = torch.tensor([row.type_ids])
                scores.append(model(**feed).logits[0].item())
                rows.write(json.dumps({"input_ids": row.ids, "type_ids": row.type_ids, "logits": scores[-1:]}) + "\n")
        print(f"{make.__name__}: {len(weights)} tensors of BERT's, logits' deviation {torch.tensor(scores).std():.3f}", flush=True)


if __name__ == "__main__":
    main()

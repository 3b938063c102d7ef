#!/usr/bin/env python3
"""Makes small models whose tokenizers join pairs as BERT, RoBERTa and T5 do, and the rows and scores that `transformers`
makes of pairs that are too long, cut at either side.

    python3 -m venv .venv && .venv/bin/pip install torch transformers
    .venv/bin/python make_truncation.py

Each folder has a golden.json: texts, and for pairs of them, a side and a length the token ids, the token types and the
logit of the row alone. No tokenizer_config.json names a side: the test puts it there.
"""
import json
import os
import shutil

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SENTENCES = [
    "how do plants make energy from light",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen; it happens in the leaves.",
    "Paris is the capital and largest city of France. It has 2,102,650 inhabitants, and the river Seine runs through it.",
    "Eine Wärmepumpe hebt Wärme auf eine höhere Temperatur, déjà vu, naïve café.",
]
TEXTS = {
    "short": "light",
    "query": SENTENCES[0],
    "document": SENTENCES[1],
    "accents": SENTENCES[3],
    "numbered": " ".join(f"{number} {word}" for number, word in enumerate(SENTENCES[2].split())),
    # Longer than what is encoded for one row: its beginning differs from its end.
    "endless": " ".join(f"{sentence} {number}" for number in range(30) for sentence in SENTENCES),
}
PAIRS = [("short", "short"), ("query", "document"), ("short", "numbered"), ("numbered", "short"), ("query", "accents"),
         ("numbered", "document"), ("accents", "numbered"), ("query", "endless"), ("endless", "query"), ("endless", "numbered")]
LENGTHS = [9, 10, 16, 17, 25]


def bert():
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    raw.train_from_iterator(SENTENCES * 3, trainer)
    cls, sep = raw.token_to_id("[CLS]"), raw.token_to_id("[SEP]")
    raw.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    config = dict(kind=t.BertConfig, max_position_embeddings=64)
    return raw, names, ["input_ids", "token_type_ids", "attention_mask"], t.BertForSequenceClassification, config


def roberta():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(SENTENCES * 3, trainer)
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    names = dict(bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>", sep_token="</s>", unk_token="<unk>")
    config = dict(kind=t.RobertaConfig, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1)
    return raw, names, ["input_ids", "attention_mask"], t.RobertaForSequenceClassification, config


def t5():
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      show_progress=False)
    raw.train_from_iterator(SENTENCES * 3, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", raw.token_to_id("</s>"))])
    names = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = dict(kind=t.T5Config, d_model=24, d_kv=6, d_ff=40, num_layers=1, num_heads=4, decoder_start_token_id=0,
                  pad_token_id=0, eos_token_id=1, relative_attention_max_distance=20)
    return raw, names, ["input_ids", "attention_mask"], t.T5ForSequenceClassification, config


def seed(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif "embeddings" in name or "shared" in name:
                parameter.normal_(0.0, 1.0)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            else:
                parameter.normal_(0.0, 1.3 / parameter.shape[-1] ** 0.5)


def make(name, parts):
    raw, names, inputs, kind, keys = parts
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(5)
    common = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    of_kind = keys.pop("kind")
    config = of_kind(**(keys if name == "t5" else common | keys), vocab_size=raw.get_vocab_size(), num_labels=1)
    model = kind(config).eval()
    seed(model)
    model.to(torch.float16).save_pretrained(folder)
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = {side: t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(raw.to_str()), model_max_length=64,
                                              model_input_names=inputs, truncation_side=side, **names)
              for side in ("left", "right")}
    golden = []
    for side, tokenizer in tokens.items():
        for length in LENGTHS:
            for query, document in PAIRS:
                # Which of two texts keeps an odd token, both of them longer than a row, depends in `tokenizers` 0.23 on where
                # the last word that it looked at ends, and before on their whole lengths. The gateway leaves it to the document.
                n_tokens = [len(raw.encode(TEXTS[name], add_special_tokens=False).ids) for name in (query, document)]
                if length <= min(n_tokens) and (length - raw.num_special_tokens_to_add(is_pair=True)) % 2 == 1:
                    continue
                feed = tokenizer(TEXTS[query], TEXTS[document], truncation=True, max_length=length, return_tensors="pt")
                with torch.no_grad():
                    logit = model(**feed).logits.item()
                ids = feed["input_ids"][0].tolist()
                types = feed["token_type_ids"][0].tolist() if "token_type_ids" in feed else [0] * len(ids)
                golden.append(dict(side=side, row_tokens_max=length, query=query, document=document, input_ids=ids,
                                   type_ids=types, logit=logit))
    raw.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump(dict(model_max_length=64, **names), file, indent=1)
    with open(os.path.join(folder, "golden.json"), "w") as file:
        json.dump(dict(transformers=t.__version__, texts=TEXTS, rows=golden), file, ensure_ascii=False)
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    logits = torch.tensor([row["logit"] for row in golden])
    print(f"{name}: {len(tokens['left'])} tokens, logits {logits.mean():.2f} ± {logits.std():.2f}")


for name, parts in [("bert", bert()), ("roberta", roberta()), ("t5", t5())]:
    make(name, parts)

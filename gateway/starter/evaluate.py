#!/usr/bin/env python3
"""Measure a reranker on a test collection: nDCG@10 and MRR@10 of BM25, random order and the model.

    python evaluate.py MODEL_DIR DATA_DIR --format beir|cranfield|vaswani [--top 50] [--tokens 512]

or of what a backend makes of it, with scores from outside:

    python evaluate.py --candidates pairs.jsonl DATA_DIR --format cranfield
    crossgate bench --stage inference --workload pairs.jsonl --requests 225 --rounds 1 \\
        --output scores.jsonl --dtype int8
    python evaluate.py --scores scores.jsonl DATA_DIR --format cranfield

The candidates of a query are the first --top documents by plain BM25 (k1 0.9,
b 0.4, lower-cased words, no stemming, no stop words) over the whole collection,
title and text together. "Random" is the mean over --shuffles orders of the same
candidates. The model scores (query, title + text), cut to --tokens.

Formats:
    beir       corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv (--split, test unless told)
    cranfield  cran.all.1400.xml, cran.qry.xml, cranqrel.trec.txt; the judgements
               number the queries by their order in the file; -1 counts as 0
    vaswani    corpus/doc-text.trec, query-text.trec, qrels

Needs numpy, and with MODEL_DIR torch and transformers.
"""
import argparse
import collections
import json
import math
import os
import random
import re
import time

import numpy as np

from bm25 import BM25


def squeeze(text):
    return " ".join(text.split())


def slurp(*parts):
    with open(os.path.join(*parts), encoding="utf-8", errors="replace") as file:
        return file.read()


def field(block, tag):
    found = re.search(rf"<{tag}>(.*?)</{tag}>", block, re.S | re.I)
    return squeeze(found[1]) if found else ""


def trec_qrels(text):
    qrels = collections.defaultdict(dict)
    for line in text.splitlines():
        if line.strip():
            query, _, document, grade = line.split()[:4]
            qrels[query][document] = max(int(grade), 0)
    return qrels


def load_cranfield(folder, split):
    documents = {field(b, "docno"): squeeze(field(b, "title") + " " + field(b, "text"))
                 for b in re.findall(r"<doc>.*?</doc>", slurp(folder, "cran.all.1400.xml"), re.S)}
    tops = re.findall(r"<top>.*?</top>", slurp(folder, "cran.qry.xml"), re.S)
    queries = {str(i): field(b, "title") for i, b in enumerate(tops, 1)}
    return documents, queries, trec_qrels(slurp(folder, "cranqrel.trec.txt"))


def load_vaswani(folder, split):
    blocks = re.findall(r"<DOC>\s*<DOCNO>(.*?)</DOCNO>(.*?)</DOC>", slurp(folder, "corpus", "doc-text.trec"), re.S)
    documents = {i.strip(): squeeze(text) for i, text in blocks}
    tops = re.findall(r"<top>.*?</top>", slurp(folder, "query-text.trec"), re.S)
    return documents, {field(b, "num"): field(b, "title") for b in tops}, trec_qrels(slurp(folder, "qrels"))


def load_beir(folder, split):
    def rows(name):
        return [json.loads(line) for line in slurp(folder, name).split("\n") if line.strip()]

    documents = {r["_id"]: squeeze(r.get("title", "") + " " + r["text"]) for r in rows("corpus.jsonl")}
    qrels = collections.defaultdict(dict)
    for line in slurp(folder, "qrels", split + ".tsv").splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels[query][document] = int(grade)
    return documents, {r["_id"]: r["text"] for r in rows("queries.jsonl") if r["_id"] in qrels}, qrels


LOADERS = {"beir": load_beir, "cranfield": load_cranfield, "vaswani": load_vaswani}


def ndcg(grades, judged, depth=10):
    ideal = sorted(judged, reverse=True)[:depth]
    total = sum(g / math.log2(i + 2) for i, g in enumerate(ideal))
    return sum(g / math.log2(i + 2) for i, g in enumerate(grades[:depth])) / total


def mrr(grades, judged, depth=10):
    return next((1 / (i + 1) for i, g in enumerate(grades[:depth]) if g > 0), 0.0)


def score(folder, pairs, tokens, batch=16):
    """Logits, in order of the pairs; pairs of like length share a batch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = tokenizer([q for q, _ in pairs], [d for _, d in pairs], truncation="longest_first", max_length=tokens)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded["input_ids"][i]))
    out, started = np.zeros(len(pairs)), time.time()
    for start in range(0, len(order), batch):
        part = order[start:start + batch]
        rows = tokenizer.pad([{k: v[i] for k, v in encoded.items()} for i in part], return_tensors="pt")
        with torch.no_grad():
            out[part] = model(**rows).logits[:, 0].float().numpy()
        if start % (batch * 100) == 0:
            print(f"  {start} of {len(pairs)} pairs, {time.time() - started:.0f} s", flush=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", metavar="MODEL_DIR", help="scored here, by transformers")
    parser.add_argument("data", metavar="DATA_DIR")
    parser.add_argument("--format", choices=sorted(LOADERS), required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shuffles", type=int, default=20)
    parser.add_argument("--candidates", metavar="FILE", help="write {query, documents} of each query there, and end")
    parser.add_argument("--scores", metavar="FILE", help="{query, scores} of each, in that order, instead of MODEL_DIR")
    args = parser.parse_args()
    if sum(map(bool, (args.model, args.candidates, args.scores))) != 1:
        parser.error("give one of MODEL_DIR, --candidates and --scores")

    documents, queries, qrels = LOADERS[args.format](args.data, args.split)
    queries = {i: q for i, q in queries.items() if any(qrels.get(i, {}).values())}
    print(len(documents), "documents,", len(queries), "judged queries")
    ids = list(documents)
    index = BM25(list(documents.values()))
    found = {i: [ids[n] for n in index.top(q, args.top)] for i, q in queries.items()}

    if args.candidates:
        with open(args.candidates, "w", encoding="utf-8") as file:
            for i, hits in found.items():
                file.write(json.dumps({"query": queries[i], "documents": [documents[d] for d in hits]}) + "\n")
        return
    if args.scores:
        with open(args.scores, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        if [(line["query"], len(line["scores"])) for line in lines] != [(queries[i], len(h)) for i, h in found.items()]:
            parser.error(f"{args.scores} is not of these candidates")
        logits = iter(score for line in lines for score in line["scores"])
    else:
        logits = iter(score(args.model, [(queries[i], documents[d]) for i, hits in found.items() for d in hits], args.tokens))
    scored = {i: [next(logits) for _ in hits] for i, hits in found.items()}

    rng = random.Random(0)
    measures = {"nDCG@10": ndcg, "MRR@10": mrr}
    sums = {name: collections.Counter() for name in measures}
    for i, hits in found.items():
        grades, judged = [qrels[i].get(d, 0) for d in hits], list(qrels[i].values())
        order = sorted(range(len(hits)), key=lambda n: -scored[i][n])
        shuffles = [rng.sample(grades, len(grades)) for _ in range(args.shuffles)]
        for name, measure in measures.items():
            sums[name]["random"] += sum(measure(g, judged) for g in shuffles) / args.shuffles
            sums[name]["BM25"] += measure(grades, judged)
            sums[name]["model"] += measure([grades[n] for n in order], judged)
    for name, total in sums.items():
        print(name, "  ".join(f"{key} {value / len(queries):.4f}" for key, value in total.items()))


if __name__ == "__main__":
    main()

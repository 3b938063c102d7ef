"""BM25, for choosing training negatives and for the candidates of an evaluation."""
import collections
import math
import re

import numpy as np

WORD = re.compile(r"\w+")


class BM25:
    """Plain BM25 over lower-cased words."""

    def __init__(self, texts, k1=0.9, b=0.4):
        postings, lengths = collections.defaultdict(list), np.zeros(len(texts))
        for i, text in enumerate(texts):
            words = WORD.findall(text.lower())
            lengths[i] = len(words)
            for word, count in collections.Counter(words).items():
                postings[word].append((i, count))
        norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1))
        self.size, self.postings = len(texts), {}
        for word, rows in postings.items():
            where, counts = np.array(rows).T
            idf = math.log(1 + (len(texts) - len(rows) + 0.5) / (len(rows) + 0.5))
            self.postings[word] = where, idf * counts * (k1 + 1) / (counts + norm[where])

    def top(self, query, count):
        scores = np.zeros(self.size)
        for word in WORD.findall(query.lower()):
            if word in self.postings:
                where, weight = self.postings[word]
                scores[where] += weight
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(i) for i in best if scores[i] > 0]

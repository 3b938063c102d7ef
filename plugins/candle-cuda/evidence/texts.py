"""Tokenizers and texts by seed: a vocabulary of made-up words, and requests whose rows fill every token of a length.

What they cost to tokenize is real: WordPiece behind BERT's normalizer as in MiniLM, Unigram with 250,002 pieces as in
XLM-RoBERTa, and words of which every fourth is not in the vocabulary and takes several pieces.
"""
import json
import random

SEED = 20
CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"
# Of a text's words, those that are put together from several pieces.
RARE_SHARE = 0.25
QUERY_WORDS = 9
# A word is a token or more: a document of so many words for each token of a row always fills it.
WORDS_PER_TOKEN = 1.0
# Numbers of words: enough for a vocabulary, few enough to be drawn again.
WORDS_MAX = 60_000


def made_words(count):
    """Different words of two to four syllables, the same ones every time."""
    draw = random.Random(SEED)
    words = {}
    while len(words) < count:
        syllables = draw.randint(2, 4)
        words["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(syllables))] = None
    return list(words)


def word_piece(vocab_size):
    """BERT's kind of tokenizer: its JSON, and the words that are one token."""
    pieces = ["[PAD]"] + [f"[unused{at}]" for at in range(99)] + ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces += letters + ["##" + letter for letter in letters]
    pieces += ["##" + consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    words = made_words(vocab_size - len(pieces))
    ids = {piece: at for at, piece in enumerate(pieces + words)}
    special = [added(ids[piece], piece) for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    cls, sep = ("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template([cls, "A", sep], [cls, "A", sep, ("B", 1), (*sep, 1)]),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids},
    }, words


def unigram(vocab_size):
    """XLM-RoBERTa's kind of tokenizer: its JSON, and the words that are one token."""
    words = made_words(WORDS_MAX)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    # Rarer from word to word, as in a real vocabulary; single letters are the dearest way to spell.
    pieces += [("▁" + word, -5.0 - 8.0 * at / len(words)) for at, word in enumerate(words)]
    pieces += [(consonant + vowel, -9.0) for consonant in CONSONANTS for vowel in VOWELS]
    pieces += [(chr(code), -12.0) for code in range(ord("a"), ord("z") + 1)]
    fill = vocab_size - len(pieces) - 1
    pieces += [(f"▁{at}x", -15.0) for at in range(fill)] + [("<mask>", 0.0)]
    ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": vocab_size - 1}
    start, end = ("<s>", 0), ("</s>", 2)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(at, piece) for piece, at in ids.items()],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]},
        "post_processor": template([start, "A", end], [start, "A", end, end, "B", end]),
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }, words


def added(at, piece):
    return {"id": at, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


def template(single, pair):
    """A template of parts: "A", "B", or a special token with its id, and behind them the type if it is not 0."""
    special = {}

    def written(part):
        name, *rest = (part,) if isinstance(part, str) else part
        if name in ("A", "B"):
            return {"Sequence": {"id": name, "type_id": rest[0] if rest else 0}}
        special[name] = {"id": name, "ids": [rest[0]], "tokens": [name]}
        return {"SpecialToken": {"id": name, "type_id": rest[1] if len(rest) > 1 else 0}}

    single, pair = [written(part) for part in single], [written(part) for part in pair]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def requests(words, row_tokens, count, documents):
    """Requests of one length: a query, and documents that are cut to what is left of `row_tokens`."""
    draw = random.Random(SEED + row_tokens)

    def text(length):
        chosen = draw.choices(words[:len(words) // 2], k=length)
        return " ".join(
            word + draw.choice(CONSONANTS) + draw.choice(VOWELS) if draw.random() < RARE_SHARE else word
            for word in chosen)

    length = int(row_tokens * WORDS_PER_TOKEN)
    return [{"query": text(QUERY_WORDS), "documents": [text(length) for _ in range(documents)]}
            for _ in range(count)]


def write_lines(path, values):
    with open(path, "w", encoding="utf-8") as lines:
        for value in values:
            lines.write(json.dumps(value, ensure_ascii=False) + "\n")

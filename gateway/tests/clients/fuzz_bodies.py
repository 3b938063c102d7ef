"""Texts, JSON and messages as clients send them, and what becomes of them when something goes wrong."""
import gzip
import json
import zlib

import zstandard
from google.protobuf.descriptor import FieldDescriptor

TEXTS = [
    "what is the capital of France?", "Paris is the capital of France.", "Bread is made of flour.", "plants", "",
    " ", "\0", "\x07\x08", "a" * 5_000, "光合作用" * 2_000, "e\u0301" * 300, "🏳️‍🌈👩‍👩‍👧‍👦", "\ufeff", "\u202eabc", "\U0010ffff", "\r\n\r\n",
    "[SEP]", "[CLS] a [SEP] b", "[PAD]" * 20, "<s></s>", "{{query}}", "null", "-1", "1e400", '{"text": "a"}', "x" * 70_000,
    " ".join(["word"] * 3_000), "\u0130İßﬁ", "'; drop table models; --", "../../etc/passwd", "%00", "\u2028", "high", "error",
    "chunk_max", "starter", "END", "left", "BYTES", "FP32", "documents", "query",
]
NUMBERS = [0, 1, -1, 2, 7, 255, 1 << 31, -(1 << 31), 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63), 0.5, -0.0, 1e-320, 1e308]
# As JSON's text, which Python would not write.
RAW = ["1e999", "-1e999", "1E5", "-0", "0.0000000000000000000000000000001", "1" * 400, '"\\ud800"', '"\\udc00\\ud800"', "NaN", "Infinity",
       "01", "'a'", "tru", "", "{", "[", '"', '{"a":1,"a":2}', "\ufeff{}"]
KEYS = ["query", "documents", "texts", "model", "top_n", "top_k", "input", "inputs", "queries", "items", "text_1", "text_2", "data_1",
        "data_2", "passages", "property", "return_documents", "return_text", "raw_scores", "truncate", "truncation_side",
        "truncation_direction", "overflow", "priority", "max_tokens_per_doc", "max_tokens_per_query", "truncate_prompt_tokens",
        "instruction", "rank_fields", "use_activation", "activation", "softmax", "text_pairs", "max_length", "parameters", "outputs",
        "id", "name", "shape", "data", "datatype", "text", "content", "type", "", "a" * 300, "$ref", "__proto__"]
# What a list may grow to: twice what the server takes in all.
LIST_BYTES_MAX = 2 << 20
# Bytes to which a small body may be unpacked here; more than the server takes.
BOMB_BYTES = 8 << 20


class Raw:
    """JSON's text as it stands."""

    def __init__(self, text):
        self.text = text


def text(rng):
    return rng.choice(TEXTS[:4]) if rng.random() < 0.5 else rng.choice(TEXTS)


def value(rng, depth=0):
    """Any value of JSON's."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return text(rng)
    if kind == 2:
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice([None, True, False])
    if kind == 4:
        return Raw(rng.choice(RAW))
    if kind == 5:
        return rng.choice([[], {}, [[]], [None], {"text": "a"}, {"text": 5}, {"content": [{"type": "text", "text": "a"}]}])
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 7:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return nested(rng)


def nested(rng):
    depth = rng.choice([5, 60, 127, 128, 200, 5_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    return Raw(opened * depth + "1" + closed * depth)


def places(found, path=()):
    """Paths of all values within one."""
    yield path
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(rng, body):
    """A copy of a body of JSON's with one thing changed."""
    body = json.loads(json.dumps(body)) if not has_raw(body) else body
    path = rng.choice([path for path in places(body) if path] or [()])
    if not path:
        return value(rng)
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    change(rng, holder, path[-1])
    return body


def has_raw(found):
    if isinstance(found, Raw):
        return True
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return any(map(has_raw, inner))


def change(rng, holder, key):
    kind, found = rng.randrange(9), holder[key]
    if kind < 3:
        holder[key] = value(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = holder.pop(key)
    elif kind == 5 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = value(rng)
    elif kind == 6 and isinstance(found, list):
        n = rng.choice([0, 2, 50, 250])
        holder[key] = found * (n if n * len(write(found, True)) <= LIST_BYTES_MAX else 1)
    elif kind == 7:
        holder[key] = rng.choice([[found], {"text": found}, [[found]]])
    elif isinstance(found, str):
        holder[key] = found + text(rng)
    else:
        holder[key] = rng.choice(NUMBERS)


def written(rng, body):
    """A body as JSON's text; sometimes with other spaces, an escape for each character, or a key twice."""
    out = write(body, ascii_only=rng.random() < 0.5)
    if isinstance(body, dict) and rng.random() < 0.05:
        out = out[:-1] + ("," if len(out) > 2 else "") + f"{json.dumps(rng.choice(KEYS))}:{write(value(rng), True)}" + "}"
    if rng.random() < 0.05:
        out = rng.choice([" ", "\n" * 1_000, "\ufeff", "\t"]) + out + rng.choice([" ", "\0", "{}", "\n"])
    return out.encode("utf-8", "surrogatepass")


def write(body, ascii_only):
    if isinstance(body, Raw):
        return body.text
    if isinstance(body, dict):
        inner = (f"{json.dumps(key)}:{write(found, ascii_only)}" for key, found in body.items())
        return "{" + ",".join(inner) + "}"
    if isinstance(body, list):
        return "[" + ",".join(write(found, ascii_only) for found in body) + "]"
    return json.dumps(body, ensure_ascii=ascii_only)


def battered(rng, data):
    """Bytes with some of them changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice([0, 0x7F, 0x80, 0xC0, 0xFF, 0x22, 0x5C])
        elif kind == 2:
            del data[at:at + rng.choice([1, 4, 100])]
        elif kind == 3:
            data[at:at] = data[at:at + rng.choice([1, 16, 300])]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        else:
            del data[at:]
    return bytes(data)


def packed(rng, body):
    """(value of Content-Encoding, body): packed, said to be packed, or packed with something wrong."""
    if rng.random() < 0.05:
        body = b" " * BOMB_BYTES + body
    pack = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstandard.compress, "deflate": zlib.compress,
            "identity": bytes, "br": bytes, "gzip, zstd": lambda data: zstandard.compress(gzip.compress(data))}
    name = rng.choice(["gzip", "zstd", "gzip", "zstd", *pack])
    out = pack[name](body)
    kind = rng.randrange(10)
    if kind == 0:
        out = body
    elif kind == 1:
        out = battered(rng, out)
    elif kind == 2:
        # Members and frames may follow each other.
        half = len(body) // 2
        out = pack[name](body[:half]) + pack[name](body[half:])
    elif kind == 3:
        name = rng.choice([name.upper(), "", "gzip,gzip", " gzip ", "zst", "*"])
    return name.encode(), out


def scalar(rng, field):
    kinds = FieldDescriptor
    if field.type == kinds.TYPE_STRING:
        return rng.choice(["", "starter"]) if "model" in field.name and rng.random() < 0.8 else text(rng)
    if field.type == kinds.TYPE_BYTES:
        return rng.choice([b"", b"a", b"\xff\xfe", text(rng).encode(), rng.randbytes(40)])
    if field.type == kinds.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE):
        return rng.choice([0.0, -1.5, float("inf"), float("nan"), 1e30])
    if field.type == kinds.TYPE_ENUM:
        return rng.choice([0, 1, 2, 3, -1, 1 << 30])
    bits = 64 if field.type in (kinds.TYPE_INT64, kinds.TYPE_UINT64) else 32
    is_unsigned = field.type in (kinds.TYPE_UINT32, kinds.TYPE_UINT64)
    low, high = (0, (1 << bits) - 1) if is_unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return rng.choice([0, 1, 2, 5, 100, low, high, high // 2])


def fill(rng, message, depth=0):
    """Sets fields of a message at random."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.6:
            continue
        if field.is_repeated and field.message_type and field.message_type.GetOptions().map_entry:
            continue
        n = rng.choice([1, 2, 3, 3, 40, 250]) if field.is_repeated else 1
        if field.message_type:
            if depth < 3:
                for _ in range(min(n, 8)):
                    inner = getattr(message, field.name)
                    fill(rng, inner.add() if field.is_repeated else inner, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(rng, field) for _ in range(n))
        else:
            setattr(message, field.name, scalar(rng, field))
    return message

"""Requests over HTTP/1 and HTTP/2: what clients send, with something wrong in it, and whether the answer is an answer."""
import dataclasses
import json
import shlex
import struct

from fuzz_bodies import battered, mutated, packed, text, written
from fuzz_wire import Http2, chunked, frames, head1, http1, throw

ODD_TARGETS = [b"/rerank/", b"//rerank", b"/Rerank", b"/rerank?a=%00", b"/%72erank", b"/rerank%00", b"/..%2frerank", b"/v2/models/%ff", b"/v2/models/",
               b"/v1/models/a/b", b"/docs/%2e%2e/%2e%2e/etc/passwd", b"/docs/index.html", b"/docs/x", b"*", b"/v2/models/starter/versions/1/infer",
               b"/v2/models/starter/versions/999999999999999999999/ready", b"/metrics?format=json", b"/metrics?format=%ff", b"/" + b"a" * 8_000,
               b"/v1/retrieval/%F0%9F/reranking", b"/v1/retrieval/a/b/reranking", b"http://localhost/rerank", b"/?" + b"a=b&" * 2_000]
ODD_METHODS = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"BREW", b"post", b"TRACE", b"CONNECT"]
# Name, values. Each is put in now and then; the first few are what most clients send.
HEADERS = [
    (b"Content-Type", [b"application/json", b"application/json; charset=utf-8", b"text/json", b"application/ld+json", b"text/plain", b"",
                       b"application/octet-stream", b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b"\xff"]),
    (b"Accept", [b"*/*", b"application/json", b"text/event-stream", b"application/openmetrics-text", b"\xff/;q=2"]),
    (b"Accept-Encoding", [b"gzip", b"zstd", b"identity;q=0", b"*;q=0", b"gzip;q=0.001, br", b"\xff", b"gzip" + b",gzip" * 500]),
    (b"X-Request-Id", [b"mine", b"a" * 128, b"a" * 129, b"", b"\xc3\xa9", b"a b", b"\t"]),
    (b"X-Request-Timeout-Ms", [b"1", b"5", b"50", b"1000", b"0", b"-1", b"1e3", b"18446744073709551615", b"18446744073709551616", b""]),
    (b"X-Priority", [b"high", b"normal", b"low", b"LOW ", b"-5", b"9999999999999999999", b"", b"urgent", b"\xff"]),
    (b"Authorization", [b"Bearer key", b"Bearer", b"Basic a", b"\xff", b"Bearer " + b"k" * 5_000]),
    (b"Expect", [b"100-continue", b"200-ok"]),
    (b"Origin", [b"http://localhost", b"null", b"\xff"]),
    (b"traceparent", [b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"00-0-0-0", b"\xff"]),
    (b"X-Forwarded-For", [b"1.2.3.4", b"a, b", b""]),
    (b"Inference-Header-Content-Length", [b"10", b"0", b"-1", b"99999999999999999999", b"a"]),
]
VALUE_BYTES = 500
# Headers of one request, and bytes of one, at which the server's own bounds are near.
MANY_HEADERS, LONG_HEADER_BYTES = [80, 101, 300], [8_000, 70_000, 500_000]


@dataclasses.dataclass
class Rest:
    """One request. `leave` is the share of its bytes after which the client hangs up."""
    method: bytes
    target: bytes
    headers: list
    body: bytes
    how: str = "length"
    times: int = 1
    pieces: int = 1
    leave: float | None = None
    is_hard: bool = False
    wire: bytes | None = None
    is_http2: bool = False

    def run(self, address, timeout_s):
        if self.wire is not None:
            is_http1 = not self.wire.startswith(b"PRI")
            return http1(address, self.wire, "GET", garbage=True, timeout_s=timeout_s) if is_http1 else throw(address, self.wire, timeout_s)
        if self.is_http2:
            parts = self.parts()
            leave = None if self.leave is None else int(self.leave * (len(parts) + 1))
            return Http2(address, timeout_s).call(self.headers2(), parts, leave, self.is_hard)
        wire = self.bytes1()
        leave = None if self.leave is None else int(self.leave * len(wire))
        return http1(address, wire, self.method.decode("latin-1"), self.times, leave, self.is_hard, timeout_s=timeout_s)

    def parts(self):
        size = max(1, -(-len(self.body) // self.pieces))
        return [self.body[at:at + size] for at in range(0, len(self.body), size)]

    def bytes1(self):
        headers = [(b"Host", b"localhost"), *self.headers]
        if self.how == "chunks":
            return head1(self.method, self.target, [*headers, (b"Transfer-Encoding", b"chunked")]) + chunked(self.body, self.pieces)
        lengths = {"length": [len(self.body)], "short": [len(self.body) // 2], "long": [len(self.body) + 10], "none": [],
                   "twice": [len(self.body), 3], "huge": [1 << 40], "broken": [b"-1"]}[self.how]
        announced = [(b"Content-Length", length if isinstance(length, bytes) else b"%d" % length) for length in lengths]
        return head1(self.method, self.target, headers + announced) + self.body

    def headers2(self):
        pseudo = [(b":method", self.method), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", self.target)]
        # In pieces: to pack a long value takes the Python of HTTP/2 a minute.
        pieces = [(name.lower(), value[at:at + VALUE_BYTES]) for name, value in self.headers for at in range(0, len(value) or 1, VALUE_BYTES)]
        return pseudo + pieces

    def curl(self, http, body_file):
        """A line that sends the same, as far as curl can."""
        words = ["curl", "-i", "-X", self.method.decode("latin-1"), "--path-as-is", "--data-binary", f"@{body_file}"]
        words += ["--http2-prior-knowledge"] if self.is_http2 else []
        for name, value in self.headers:
            shown = value.decode("latin-1")
            words += ["-H", f"{name.decode('latin-1')}: {shown}" if shown else f"{name.decode('latin-1')};"]
        target = self.target.decode("latin-1")
        return shlex.join([*words, target if target.startswith("http") else http + target])

    def seconds_asked(self):
        """For how long the client is ready to wait; `None` where it does not say."""
        found = [value for name, value in self.headers if name.lower() == b"x-request-timeout-ms" and value.strip().isdigit()]
        if found:
            return int(found[0]) / 1e3
        # KServe's word for it stands in the body, which may be packed.
        return 0.0 if self.target.startswith(b"/v2/models") else None

    def wrong(self, answer):
        """What is wrong with an answer, or nothing."""
        if self.wire is not None or answer.why == "left":
            return wrong_status(answer) if answer.status else ""
        if answer.status is None:
            return self.wrong_silence(answer)
        return wrong_status(answer) or wrong_form(answer, self.method)

    def wrong_silence(self, answer):
        # What is no HTTP, or what the other side of a proxy would read otherwise, may be answered by closing.
        is_sound = self.how in ("length", "chunks") and self.method not in (b"CONNECT", b"post") and self.target.startswith(b"/")
        has_odd_head = any(name in (b"Expect", b"Big") or b"\xff" in value for name, value in self.headers)
        is_refused_early = len(self.body) > 100_000 and ("closed" in answer.why or "Reset" in answer.why or "Pipe" in answer.why)
        if "timeout" in answer.why or (is_sound and not has_odd_head and not is_refused_early):
            return f"no answer: {answer.why}"
        return ""


def wrong_status(answer):
    if answer.status == 503 and "retry-after" not in answer.headers:
        return "a 503 that does not say when to come back"
    return "" if answer.status < 500 or answer.status in (503, 504) else f"{answer.status}"


def wrong_form(answer, method):
    """Whether what came is what it says it is."""
    is_bare = answer.status in (400, 431, 414) and not answer.body and "x-request-id" not in answer.headers
    if is_bare or method == b"HEAD":
        return ""
    if "x-request-id" not in answer.headers:
        return f"{answer.status} without a request's id"
    encoding, media_type = answer.headers.get("content-encoding"), answer.headers.get("content-type", "")
    if answer.status >= 400 and media_type != "application/json":
        return f"{answer.status} as {media_type!r}"
    if encoding is None and media_type == "application/json":
        return wrong_json(answer)
    return ""


def wrong_json(answer):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    try:
        found = json.loads(answer.body, parse_constant=refuse)
    except ValueError as error:
        return f"{answer.status}: {error}"
    if answer.status >= 400 and "error" not in found and "reasons" not in found and "ready" not in found and "status" not in found:
        return f"{answer.status} that does not say what is wrong"
    return ""


class Dialects:
    """What to start from: recorded exchanges, and the examples of the server's own description."""

    def __init__(self, exchanges, api):
        self.seeds, self.gets = [], [b"/docs/", b"/docs/index.html", b"/metrics?format=json"]
        for exchange in exchanges:
            method, target = exchange["line"].split(" ", 1)
            body = exchange["body"]
            if isinstance(body, dict) and body.get("model"):
                body = {**body, "model": "starter"}
            self.seeds.append((method.encode(), target.encode(), body))
        for path, item in api["paths"].items():
            target = path.replace("{id}", "starter").replace("{model}", "starter").encode()
            if "get" in item:
                self.gets.append(target)
            if "post" in item:
                asked = item["post"]["requestBody"]["content"]["application/json"]["schema"]
                for schema in alternatives(api, asked):
                    body = json.loads(json.dumps(schema["example"]).replace('"default"', '"starter"'))
                    self.seeds.append((b"POST", target, body))

    def draw(self, rng):
        """A request."""
        method, target, body = rng.choice(self.seeds)
        if rng.random() < 0.08:
            method, target, body = b"GET", rng.choice(self.gets), None
        for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 4])):
            body = mutated(rng, body)
        data = b"" if body is None else written(rng, body)
        if rng.random() < 0.1:
            data = battered(rng, data)
        headers = [(b"Content-Type", b"application/json")] if rng.random() < 0.9 else []
        for name, values in HEADERS:
            if rng.random() < 0.08:
                headers = [header for header in headers if header[0] != name or rng.random() < 0.1]
                headers.append((name, rng.choice(values)))
        if target.endswith(b"/infer") and rng.random() < 0.3:
            headers, data = tensors(rng, headers, data)
        if rng.random() < 0.15 and body is not None:
            encoding, data = packed(rng, data)
            headers.append((b"Content-Encoding", encoding))
        if rng.random() < 0.02:
            headers += [(b"X-%d" % n, b"a") for n in range(rng.choice(MANY_HEADERS))]
        if rng.random() < 0.02:
            headers.append((b"Big", b"a" * rng.choice(LONG_HEADER_BYTES)))
        return self.sent(rng, Rest(method, target, headers, data))

    def sent(self, rng, rest):
        """The same, sent in one of many ways."""
        if rng.random() < 0.05:
            rest.target = rng.choice(ODD_TARGETS)
        if rng.random() < 0.03:
            rest.method = rng.choice(ODD_METHODS)
        rest.pieces, rest.is_hard = rng.choice([1, 1, 2, 7]), rng.random() < 0.3
        rest.is_http2 = rng.random() < 0.25
        if rng.random() < 0.3 and not rest.is_http2:
            rest.how = rng.choice(["chunks", "chunks", "chunks", "chunks", "short", "none", "twice", "broken"])
        # The server waits for what was announced: few of these.
        if rng.random() < 0.003 and not rest.is_http2:
            rest.how = rng.choice(["long", "huge"])
        if rest.how in ("length", "chunks") and rng.random() < 0.1:
            rest.times = rng.choice([2, 3])
        if rng.random() < 0.08:
            rest.leave = rng.random()
        elif rng.random() < 0.06:
            whole = frames(rest.headers2(), rest.parts()) if rest.is_http2 else rest.bytes1()
            rest.wire = battered(rng, whole)
        return rest


def tensors(rng, headers, data):
    """A body of KServe's with bytes behind its JSON, and the header that says where they begin."""
    tail = b"".join(struct.pack("<I", len(part)) + part for part in (text(rng).encode("utf-8", "replace") for _ in range(rng.randrange(4))))
    if rng.random() < 0.3:
        tail = battered(rng, tail)
    length = len(data) + rng.choice([0, 0, 0, 1, -1, len(tail)])
    return [*headers, (b"Inference-Header-Content-Length", b"%d" % length)], data + tail


def alternatives(api, schema):
    """What a body may be: the schemas that have an example."""
    if "$ref" in schema:
        schema = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "example" in schema:
        return [schema]
    return [found for inner in schema.get("oneOf", []) for found in alternatives(api, inner)]

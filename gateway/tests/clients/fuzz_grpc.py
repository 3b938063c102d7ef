"""Calls over gRPC: messages of every method that the server's reflection tells of, with something wrong in them, and streams that
end before their time."""
import dataclasses
import gzip
import shlex
import struct

import grpc
import zstandard
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from fuzz_bodies import battered, fill, text
from fuzz_wire import Http2, frames, throw

# In a message of gRPC's: whether it is packed, and its length.
PREFIX = struct.Struct(">BI")
# Each message of a stream is a request.
STREAM_MESSAGES = [0, 1, 2, 3, 10, 80]
HEADERS = [
    (b"grpc-timeout", [b"1n", b"5m", b"100m", b"1S", b"99999999H", b"0S", b"-1S", b"a", b""]),
    (b"grpc-accept-encoding", [b"gzip", b"zstd,gzip,identity", b"\xff", b"snappy"]),
    (b"x-request-id", [b"mine", b"a" * 129, b"\xff"]),
    (b"x-priority", [b"high", b"LOW", b"urgent"]),
    (b"authorization", [b"Bearer key", b"\xff"]),
    (b"user-agent", [b"grpc-python/1.85", b""]),
    (b"odd-bin", [b"AAAA", b"*"]),
]
# As it is written in a header; clients bound theirs so.
MESSAGE_BYTES_MAX = 8 << 10
FOREIGN = (b"/grpc.health.", b"/grpc.reflection.")
OK, INVALID, DEADLINE, NOT_FOUND, EXHAUSTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 5, 8, 11, 12, 13, 14
FAIR = {OK, INVALID, DEADLINE, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE}


def tensor_request(rng, message):
    """What Triton's clients send."""
    documents = [text(rng).encode("utf-8", "replace") for _ in range(3)]
    is_raw = rng.random() < 0.5
    for name, elements in [("query", [b"plants"]), ("documents", documents)]:
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(elements)])
        if is_raw:
            message.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in elements))
        else:
            tensor.contents.bytes_contents.extend(elements)
    message.model_name = "starter"


def usual(rng, message):
    """Fills in what the method needs to be answered, where the message has it."""
    names = message.DESCRIPTOR.fields_by_name
    if "raw_input_contents" in names:
        tensor_request(rng, message)
    if "score" in names and names["score"].message_type:
        usual(rng, message.score)
        message.id = "1"
    if "query" in names and not names["query"].is_repeated:
        message.query = "plants"
    for name in ("documents", "texts"):
        if name in names:
            getattr(message, name).extend(text(rng) for _ in range(rng.choice([1, 3, 3, 30])))
    if "text" in names:
        message.text = text(rng)
    if "inputs" in names and not names["inputs"].message_type:
        if names["inputs"].is_repeated:
            message.inputs.extend([text(rng), text(rng)])
        else:
            message.inputs = text(rng)
    if "ids" in names:
        message.ids.extend(rng.randrange(40_000) for _ in range(5))


@dataclasses.dataclass
class Call:
    """One call, its body in pieces as they are sent. `leave` is the number of pieces after which it is given up."""
    target: bytes
    headers: list
    pieces: list
    leave: int | None = None
    is_hard: bool = False
    wire: bytes | None = None
    # Whether what frames the messages is as it should be, and the call's head.
    is_framed: bool = True
    is_grpc: bool = True

    @property
    def body(self):
        return b"".join(self.pieces)

    def all_headers(self):
        return [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", self.target), *self.headers]

    def run(self, address, timeout_s):
        if self.wire is not None:
            return throw(address, self.wire, timeout_s)
        return Http2(address, timeout_s).call(self.all_headers(), self.pieces, self.leave, self.is_hard)

    def curl(self, http, body_file):
        words = ["curl", "-i", "--http2-prior-knowledge", "--output", "-", "--data-binary", f"@{body_file}"]
        for name, value in self.headers:
            words += ["-H", f"{name.decode('latin-1')}: {value.decode('latin-1')}"]
        return shlex.join([*words, http + self.target.decode("latin-1")])

    def seconds_asked(self):
        """As of a request over HTTP; messages have words of their own for it."""
        return 0.0 if dict(self.headers).get(b"grpc-timeout") or b"Stream" in self.target or b"Infer" in self.target else None

    def wrong(self, answer):
        if self.wire is not None or answer.why == "left":
            return ""
        if answer.status is None or answer.status != 200:
            is_plain = answer.status is not None and answer.status < 500 and not self.is_grpc
            return "" if is_plain or "reset" in answer.why or b"\xff" in b"".join(map(b"".join, self.headers)) else \
                f"no answer: {answer.status} {answer.why}"
        said = answer.trailers.get("grpc-message") or answer.headers.get("grpc-message", "")
        if len(said) > MESSAGE_BYTES_MAX:
            return f"a message of {len(said)} bytes, which clients do not take"
        status = answer.grpc_status
        if status is None:
            return f"no status: {answer.why}" if self.is_grpc else ""
        # gRPC's own rule for messages that are packed although nobody said so, and for those that break off.
        if status in FAIR or (status == INTERNAL and not self.is_framed):
            return ""
        # These services are not ours: they are the libraries' own, and say it in their words.
        if self.target.startswith(FOREIGN) and status in (INTERNAL, OUT_OF_RANGE):
            return ""
        return f"status {status}: {said}"


class Methods:
    """Every method, known by reflection."""

    def __init__(self, target):
        with grpc.insecure_channel(target) as channel:
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            names = ProtoReflectionDescriptorDatabase(channel).get_services()
            found = [method for name in names for method in pool.FindServiceByName(name).methods]
        # A watch of the health has no end.
        self.methods = [(method, message_factory.GetMessageClass(method.input_type)) for method in found if method.name != "Watch"]

    def draw(self, rng):
        """A call."""
        method, kind = rng.choice(self.methods)
        n = rng.choice(STREAM_MESSAGES) if method.client_streaming else 1
        target = f"/{method.containing_service.full_name}/{method.name}".encode()
        encoding = rng.choice([None] * 12 + [b"gzip", b"zstd"] * 3 + [b"identity", b"snappy"])
        headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        if encoding:
            headers.append((b"grpc-encoding", encoding))
        for name, values in HEADERS:
            if rng.random() < 0.06:
                headers.append((name, rng.choice(values)))
        call = Call(target, headers, [])
        if rng.random() < 0.03:
            headers[0] = (b"content-type", rng.choice([b"application/grpc+json", b"application/grpc-web", b"application/json", b"", b"text/plain"]))
            call.is_grpc = False
        for _ in range(n):
            call.pieces.append(self.framed(rng, call, message(rng, kind), encoding))
        return self.sent(rng, call)

    @staticmethod
    def framed(rng, call, data, encoding):
        pack = {b"gzip": gzip.compress, b"zstd": zstandard.compress}.get(encoding, bytes)
        is_packed = encoding is not None and rng.random() < 0.8
        data = pack(data) if is_packed else data
        length, flag = len(data), int(is_packed)
        if is_packed and pack is bytes:
            # Packed by what packs nothing.
            call.is_framed = False
        if rng.random() < 0.02:
            call.is_framed = False
            flag = rng.choice([1, 2, 255])
        if rng.random() < 0.02:
            call.is_framed = False
            length = rng.choice([0, length + 1, max(0, length - 1), 1 << 31, (1 << 32) - 1])
        if rng.random() < 0.03 and is_packed:
            call.is_framed = False
            data = battered(rng, data)
        return PREFIX.pack(flag, length) + data

    @staticmethod
    def sent(rng, call):
        if rng.random() < 0.03:
            call.target = rng.choice([b"/crossgate.v1.Scoring/No", b"/no.Service/Score", b"/", b"/tei.v1.Info/info", call.target + b"/", call.target * 50])
        if rng.random() < 0.05:
            call.is_framed = False
            call.pieces = [battered(rng, call.body)] if call.body else []
        if rng.random() < 0.25:
            # Frames of HTTP/2 need not end where messages do.
            whole, size = call.body, rng.choice([1, 5, 100, 1_000]) if len(call.body) < 2_000 else 5_000
            call.pieces = [whole[at:at + size] for at in range(0, len(whole), size)]
        if not call.pieces:
            # Without any message.
            call.pieces = [b""]
        call.is_hard = rng.random() < 0.3
        if rng.random() < 0.15:
            call.leave = rng.randrange(len(call.pieces) + 1)
        elif rng.random() < 0.06:
            call.wire = battered(rng, frames(call.all_headers(), call.pieces[:4]))
        return call


def message(rng, kind):
    """A message's bytes: as it should be, with fields at random, or battered."""
    found = kind()
    if rng.random() < 0.7:
        usual(rng, found)
    if rng.random() < 0.4:
        fill(rng, found)
    data = found.SerializeToString()
    return battered(rng, data) if rng.random() < 0.2 else data

"""Clients that send what they are told, byte by byte, and hang up when they are told to: HTTP/1 and HTTP/2."""
import dataclasses
import http.client
import re
import socket
import struct
import urllib.parse

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

# Of one read.
READ_BYTES = 1 << 16
# Who sent bytes that make no sense waits so long: the server may rightly wait for the rest of them.
GARBAGE_WAIT_S = 0.3
# gRPC's status for what is the server's mistake, or no gRPC.
INTERNAL = 13


@dataclasses.dataclass
class Answer:
    """What came back. `why` says why there is no status."""
    status: int | None = None
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes = b""
    trailers: dict = dataclasses.field(default_factory=dict)
    why: str = ""

    @property
    def grpc_status(self):
        text = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if text is None else int(text)

    def kind(self):
        """What it is to be counted as."""
        if self.status is None:
            return self.why.split(":")[0]
        if self.grpc_status == INTERNAL:
            said = self.trailers.get("grpc-message") or self.headers.get("grpc-message", "")
            return f"{INTERNAL} {re.sub(r'[0-9]+', 'N', urllib.parse.unquote(said))[:70]}"
        return str(self.status if self.grpc_status is None else self.grpc_status)


def connect(address, timeout_s):
    connected = socket.create_connection(address, timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def hang_up(connected, hard):
    """Closes; `hard` by a reset, as a process that dies with bytes unread."""
    if hard:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def head1(method, target, headers):
    lines = [method + b" " + target + b" HTTP/1.1"] + [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunked(body, pieces):
    """A body in chunks."""
    size = max(1, -(-len(body) // max(1, pieces)))
    parts = [body[at:at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def http1(address, wire, method, times=1, leave=None, hard=False, garbage=False, timeout_s=10.0):
    """The last of `times` answers to bytes that are sent as often, one after the other. With `leave`, a number of bytes,
    none: the client hangs up after them."""
    connected = connect(address, timeout_s)
    answers = Answers(connected)
    try:
        if leave is not None:
            send_what_goes(connected, wire[:leave])
            return Answer(why="left")
        was_sent = send_what_goes(connected, wire * times)
        if garbage:
            connected.settimeout(GARBAGE_WAIT_S)
        answer = Answer(why="no answer")
        for number in range(times):
            last, answer = answer, read1(answers, method)
            if answer.status is None and number > 0 and answer.why != "timeout":
                # A server may close behind any answer; who has sent more asks again.
                return last
            if answer.status is None or answer.headers.get("connection", "").lower() == "close":
                break
        if answer.status is None and not was_sent:
            answer.why = "closed while it was sent"
        return answer
    finally:
        answers.close()
        hang_up(connected, hard)


def send_what_goes(connected, data):
    """Whether all of it went: a server that has refused a request need not read all of it."""
    try:
        connected.sendall(data)
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False


class Answers:
    """A connection's answers, which follow each other: what reads one keeps what it has read of the next."""

    def __init__(self, connected):
        self.file = connected.makefile("rb")
        # Whoever has read an answer closes the file, which is the next one's, too.
        self.close, self.file.close = self.file.close, lambda: None

    def makefile(self, _):
        return self.file


def read1(answers, method):
    response = http.client.HTTPResponse(answers, method=method)
    try:
        response.begin()
        body = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
    except TimeoutError:
        return Answer(why="timeout")
    except (http.client.HTTPException, ConnectionResetError, ValueError) as error:
        return Answer(why=f"{type(error).__name__}: {error}")
    finally:
        response.close()


class Http2:
    """One connection of HTTP/2 with one call at a time."""

    def __init__(self, address, timeout_s):
        config = h2.config.H2Configuration(
            client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.socket = connect(address, timeout_s)
        self.h2.initiate_connection()
        self.answer, self.is_done = Answer(why="no answer"), False

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def call(self, headers, pieces, leave=None, hard=False):
        """The answer to a body in pieces. With `leave`, a number of pieces, the call is reset after them; `hard` takes the
        connection along."""
        stream = self.h2.get_next_available_stream_id()
        try:
            self.h2.send_headers(stream, headers, end_stream=not pieces and leave is None)
            for number, piece in enumerate(pieces):
                if leave == number or not self.send(stream, piece, number + 1 == len(pieces) and leave is None):
                    break
            if leave is not None:
                if not hard:
                    self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                self.flush()
                return Answer(why="left")
            self.flush()
            while not self.is_done:
                self.receive()
        except TimeoutError:
            self.answer.why, self.answer.status = "timeout", None
        except (OSError, h2.exceptions.ProtocolError) as error:
            self.answer.why = f"{type(error).__name__}: {error}"
        finally:
            hang_up(self.socket, hard)
        return self.answer

    def send(self, stream, data, is_last):
        """Whether the server still wanted it."""
        while len(data) > 0 and not self.is_done:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.flush()
                self.receive()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
        if is_last and not self.is_done:
            self.h2.end_stream(stream)
        return not self.is_done

    def receive(self):
        data = self.socket.recv(READ_BYTES)
        if not data:
            self.is_done = True
            return
        for event in self.h2.receive_data(data):
            self.handle(event)
        self.flush()

    def handle(self, event):
        def texts(headers):
            return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}

        match event:
            case h2.events.ResponseReceived():
                self.answer.headers = texts(event.headers)
                self.answer.status = int(self.answer.headers[":status"])
            case h2.events.DataReceived():
                self.answer.body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                self.answer.trailers = texts(event.headers)
            case h2.events.StreamEnded():
                self.is_done = True
            case h2.events.StreamReset():
                self.answer.why, self.is_done = f"reset: {event.error_code!r}", True
            case h2.events.ConnectionTerminated():
                self.answer.why, self.is_done = f"connection ended: {event.error_code!r}", True


def frames(headers, pieces):
    """The bytes of a call over HTTP/2 from the connection's first one on, as far as no answer is needed for them."""
    config = h2.config.H2Configuration(
        client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.send_headers(1, headers)
    for piece in pieces:
        room = min(connection.local_flow_control_window(1), connection.max_outbound_frame_size)
        connection.send_data(1, piece[:room])
    connection.end_stream(1)
    return connection.data_to_send()


def throw(address, data, timeout_s):
    """Sends bytes over which nothing is promised; what comes back is of no interest, but the connection has to end."""
    connected = connect(address, timeout_s)
    try:
        send_what_goes(connected, data)
        connected.settimeout(GARBAGE_WAIT_S)
        while connected.recv(READ_BYTES):
            pass
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        hang_up(connected, False)
    return Answer(why="thrown")

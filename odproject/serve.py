"""Daphne as the server of the port: HTTP and websocket together, with limits.

    python -m odproject.serve --fd 5 --fd 6          sockets inherited from the supervisor
    python -m odproject.serve --bind 0.0.0.0:8080    sockets of its own, as in a container

What is added to Daphne:

- a request body stays in the file it was spooled to and reaches the application as that file
  (`odproject.bridge`); Daphne would copy it into memory, and Twisted would parse it there too;
- a body above a limit is refused with 413 while it streams in, and one for which the disk has no
  room with 507; only a client with a token may send more than a small one, and only an upload;
- what has come of a body whose connection breaks reaches the application where it counts;
- sending waits for the reader; one without progress is cut off, and so is a head that trickles;
- a websocket whose client sends faster than it is heard, or does not read, is closed;
- a refusal is a problem document; no header names the server;
- SIGTERM lets running requests finish.

Environment: OD_MAX_REQUEST_BYTES (2 GiB) limits a body; OD_MAX_PARSED_BYTES (10 MiB) limits the
kinds of body that the application reads into memory (JSON, urlencoded forms, text) and every body
of a stranger. OD_MIN_FREE_BYTES (512 MiB) stay free on the disk. OD_STALLED_READER_SECONDS (60) is
how long a reader may make no progress, and how long the head of a request may take to arrive.
"""
# ruff: noqa: N802 - Twisted and Autobahn name the methods overridden here.

import argparse
import asyncio
import contextlib
import errno
import importlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

# Daphne comes before everything of Twisted: it installs the asyncio reactor.
from daphne.server import Server as DaphneServer  # isort: skip
from autobahn.websocket import ConnectionDeny
from autobahn.websocket.types import ConnectionRequest
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.logger import globalLogBeginner
from twisted.web.http import HTTPChannel

from odproject.bridge import SPOOLED_BODY, ASGIApplication, ClientDisconnectedError
from odproject.core.environ import BEGUN_AT
from odproject.core.process import die_with_parent
from odproject.core.room import (
    MAX_REQUEST_BYTES,
    MIN_FREE_BYTES,
    ROOM_CHECK_BYTES,
    has_room_for,
)
from odproject.supervisor import SupervisorError, bind_sockets

Judge = Callable[[str, str, str], int]
TakesBrokenBodies = Callable[[str, str], bool]
logger = logging.getLogger("odproject.serve")

MEBIBYTE = 1024**2
MULTIPART_OVERHEAD_BYTES = MEBIBYTE
MAX_UPGRADE_BODY_BYTES = 0
IDLE_TIMEOUT_SECONDS = 75
STALLED_READER_SECONDS = 60.0
LINGER_SECONDS = 10.0
SHUTDOWN_GRACE_SECONDS = 8.0
SEND_PIECE_BYTES = 64 * 1024
MAX_WAITING_MESSAGES = 256
WEBSOCKET_MESSAGE_BYTES = MEBIBYTE
CLOSE_HANDSHAKE_SECONDS = 5
_PARSED_TYPES = (b"application/x-www-form-urlencoded", b"application/json", b"text/")


@dataclass(frozen=True)
class Limits:
    """What the server bears: sizes of bodies in bytes, patience with clients in seconds."""

    max_request_bytes: int = MAX_REQUEST_BYTES
    max_parsed_bytes: int = 10 * MEBIBYTE
    min_free_bytes: int = MIN_FREE_BYTES
    stalled_reader_seconds: float = STALLED_READER_SECONDS

    @classmethod
    def from_environment(cls) -> "Limits":
        """Return the limits that the environment sets, with the defaults for the rest."""
        return cls(
            max_request_bytes=int(os.environ.get("OD_MAX_REQUEST_BYTES") or cls.max_request_bytes),
            max_parsed_bytes=int(os.environ.get("OD_MAX_PARSED_BYTES") or cls.max_parsed_bytes),
            min_free_bytes=int(os.environ.get("OD_MIN_FREE_BYTES") or cls.min_free_bytes),
            stalled_reader_seconds=float(
                os.environ.get("OD_STALLED_READER_SECONDS") or cls.stalled_reader_seconds
            ),
        )

    def body_limit_bytes(self, request: Any) -> int:
        """Return how long the body of `request`, whose headers are read, may be."""
        # Clients that would like HTTP/2 send Upgrade too; only a websocket begins without a body.
        if (request.getHeader(b"Upgrade") or b"").strip().lower() == b"websocket":
            return MAX_UPGRADE_BODY_BYTES
        if request.large_body_refusal:
            return min(self.max_parsed_bytes, self.max_request_bytes)
        kind = (request.getHeader(b"Content-Type") or b"").strip().lower()
        if not kind or kind.startswith(_PARSED_TYPES) or b"+json" in kind:
            return min(self.max_parsed_bytes, self.max_request_bytes)
        return self.max_request_bytes + MULTIPART_OVERHEAD_BYTES


def problem_document(status: int, code: str, name: str, detail: str) -> bytes:
    """Return a refusal by the server itself as an RFC 9457 document (UTF-8 JSON).

    `name` and `message` are there for the clients of the original API.
    """
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "name": name,
        "message": detail,
    }
    return json.dumps(document).encode()


def origin_form(target: bytes) -> bytes:
    """Return what a request's target names on this server: `http://host/a?b` is `/a?b`.

    A client may send the whole address (RFC 9112, 3.2.2), as to a proxy.
    """
    scheme, colon, rest = target.partition(b"://")
    if not colon or scheme.lower() not in (b"http", b"https"):
        return target
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path = rest[end:]
    return path if path.startswith(b"/") else b"/" + path


class Channel(HTTPChannel):
    """One HTTP connection. It refuses bodies early and tells writers when to wait."""

    _path: bytes  # of the request whose head was read last, as the two others
    _command: bytes
    _version: bytes

    def __init__(self) -> None:
        super().__init__()
        self.writable = asyncio.Event()
        self.writable.set()
        self.refused = False
        self._expects_head = True
        self._head_timer: Any = None

    @property
    def limits(self) -> Limits:
        """The limits of the server that this connection belongs to."""
        limits: Limits = self.factory.server.limits
        return limits

    def allHeadersReceived(self) -> None:
        """Refuse a body that is announced too long, instead of asking for it (100-continue)."""
        self._expects_head = False
        self._stop_head_timer()
        request = self.requests[-1]
        request.begun_at = time.time()
        if len(request.requestHeaders.getRawHeaders(b"Host", ())) > 1:
            self._respondToBadRequestAndDisconnect()
            return
        self._path = origin_form(self._path)
        # The request itself learns its address only when its body is complete.
        request.large_body_refusal = self.factory.server.refuses_large_body(
            address=self._path,
            authorization=request.getHeader(b"Authorization") or b"",
            cookies=request.getHeader(b"Cookie") or b"",
        )
        request.body_limit_bytes = self.limits.body_limit_bytes(request)
        if self.length is not None and self.length > request.body_limit_bytes:
            self.refuse_too_large(request)
            return
        if self.length is not None and not self.has_room_for(self.length):
            self.refuse_no_room()
            return
        super().allHeadersReceived()

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sends; after a refusal it is thrown away."""
        if self.refused:
            return
        # What comes while a request is answered waits for its end, and may well be whole.
        if self._expects_head and not self._handlingRequest and self._head_timer is None:
            self._head_timer = self.callLater(
                self.limits.stalled_reader_seconds, self._refuse_late_head
            )
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head; after a refusal it is thrown away."""
        if not self.refused:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """Take a header; a length of more digits than Python reads as a number is none."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def allContentReceived(self) -> None:
        """Run the request, unless it was refused."""
        self._expects_head = True
        if not self.refused:
            super().allContentReceived()

    def takes_broken_body(self) -> bool:
        """Whether the body that is coming counts as far as it has come, without the rest."""
        server: Server = self.factory.server
        return server.takes_broken_body(method=self._command, address=self._path)

    def broken_off(self, request: "Request") -> None:
        """Run a request of whose body the rest will never come."""
        request.requestReceived(self._command, self._path, self._version)

    def has_room_for(self, length_bytes: int) -> bool:
        """Tell whether the disk keeps its reserve; a small body is not worth the question."""
        if length_bytes < ROOM_CHECK_BYTES:
            return True
        return has_room_for(length_bytes, min_free_bytes=self.limits.min_free_bytes)

    def refuse_no_room(self) -> None:
        """Answer 507 before the disk is full."""
        self.refuse(507, "storage_full", "StorageFullError", "The server has no room for this.")

    def refuse_too_large(self, request: "Request") -> None:
        """Answer 413 while the body is still coming, or 401 to a stranger who uploads."""
        if request.large_body_refusal == 401:
            detail = "Authentication credentials were not provided, or are not valid."
            self.refuse(401, "unauthorized", "UnauthorizedError", detail)
            return
        limit_bytes = request.body_limit_bytes
        self.refuse(
            413,
            "request_too_large",
            "RequestTooLargeError",
            f"The request's body is longer than the {limit_bytes} bytes allowed for its kind.",
        )

    def refuse(self, status: int, code: str, name: str, detail: str) -> None:
        """Answer with a problem document and end the connection.

        Our side is closed at once; the client's is still read and thrown away for a while,
        because a reset would take the answer away from a client that is busy sending.
        """
        if self.refused:
            return
        self.refused = True
        body = problem_document(status, code, name, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            "Content-Type: application/problem+json\r\n"
            f"X-Request-ID: {uuid.uuid4().hex}\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        for request in self.requests:
            request.drop_body()
        self._stop_head_timer()
        self.setTimeout(None)
        self._networkProducer.unregisterProducer()
        self.transport.write(head.encode("ascii") + body)
        self.transport.loseWriteConnection()
        self.callLater(LINGER_SECONDS, self.transport.abortConnection)

    def readConnectionLost(self) -> None:
        """Close when the client has closed its side (with a refusal we have closed ours)."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing: only a refusal closes our side alone, and it then waits for the client."""

    def pauseProducing(self) -> None:
        """Note that the reader is behind."""
        self.writable.clear()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Note that the reader has caught up."""
        self.writable.set()
        super().resumeProducing()

    def connectionLost(self, reason: Any) -> None:
        """Wake up whoever waits for the reader."""
        self._stop_head_timer()
        self.writable.set()
        super().connectionLost(reason)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse an address or a header that is too long."""
        self.refuse(431, "head_too_large", "HeadTooLargeError", "The request's head is too long.")

    def _refuse_late_head(self) -> None:
        self._head_timer = None
        detail = "The request's head did not arrive in time."
        self.refuse(408, "request_timeout", "RequestTimeoutError", detail)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(400, "bad_request", "BadRequestError", "The request is not valid HTTP.")


class Request(WebRequest):
    """An HTTP request whose body stays in the file it was spooled to."""

    content: Any  # the file, once the head is read; None before, and after a refusal

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Twisted would read a posted form into memory to parse it.
        super().__init__(*args, parsePOSTFormSubmission=False, **kwargs)
        self.http_channel: Channel = self.channel
        self.body_limit_bytes = 0
        self.large_body_refusal = 0
        self.begun_at = 0.0  # seconds since the epoch
        self.is_received = False
        self.has_broken_off = False
        self.received_bytes = 0
        self.room_check_at_bytes = ROOM_CHECK_BYTES

    def handleContentChunk(self, data: bytes) -> None:
        """Add a piece to the body. A chunked body, which announces no length, ends here."""
        if self.content is None:
            return
        self.received_bytes += len(data)
        if self.received_bytes > self.body_limit_bytes:
            self.http_channel.refuse_too_large(self)
            return
        if self.received_bytes >= self.room_check_at_bytes:
            self.room_check_at_bytes += ROOM_CHECK_BYTES
            if not self.http_channel.has_room_for(ROOM_CHECK_BYTES):
                self.http_channel.refuse_no_room()
                return
        try:
            self.content.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.http_channel.refuse(
                507, "storage_full", "StorageFullError", "The server has no room for this."
            )

    def drop_body(self) -> None:
        """Free the disk that a refused body has taken."""
        if self.content is not None:
            with contextlib.suppress(OSError):
                self.content.close()
            self.content = None

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Run the request once its body is complete on the disk, or has broken off."""
        self.is_received = True
        try:
            self.content.flush()
        except OSError:
            self.http_channel.refuse(
                507, "storage_full", "StorageFullError", "The server has no room for this."
            )
            return
        super().requestReceived(command, path, version)

    @property
    def counts_in_part(self) -> bool:
        """Whether the body is still coming, and counts as far as it has come."""
        is_coming = self.received_bytes and not self.is_received and self.content is not None
        return bool(is_coming) and self.http_channel.takes_broken_body()

    def connectionLost(self, reason: Any) -> None:
        """Hand over what has come of a body that breaks off, where it counts."""
        if self.counts_in_part:
            self.has_broken_off = True
            self.http_channel.broken_off(self)
        super().connectionLost(reason)

    def process(self) -> Any:
        """Hand the request to the application."""
        # It would let every client move the application to another path.
        self.requestHeaders.removeHeader(b"Daphne-Root-Path")
        return super().process()

    def handle_exception(self, exception: BaseException) -> None:
        """Answer for an application that failed."""
        self.basic_error(500, b"Internal Server Error", "The server failed to answer this request")

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        """Answer for the application, as a problem document."""
        if self._response_started:
            # An end that looks regular would pass half a body for a whole one.
            if self.channel is not None:
                self.http_channel.forceAbortClient()
            return
        name = status_text.decode("ascii").title().replace(" ", "").removesuffix("Error") + "Error"
        code = status_text.decode("ascii").lower().replace(" ", "_")
        document = problem_document(status, code, name, f"{body.rstrip('.')}.")
        headers = [(b"Content-Type", b"application/problem+json")]
        headers.append((b"X-Request-ID", uuid.uuid4().hex.encode()))
        headers.append((b"Content-Length", str(len(document)).encode()))
        self.handle_reply(
            {"type": "http.response.start", "status": status, "headers": headers},
        )
        self.handle_reply({"type": "http.response.body", "body": document})


class Socket(WebSocketProtocol):
    """A websocket that is closed when its client sends faster than the application listens."""

    def onConnect(self, request: ConnectionRequest) -> Any:
        """Open the websocket; names of subprotocols that Daphne cannot read are refused with 400.

        Raises ConnectionDeny for them. They would be a failure of the server, 500.
        """
        if not all(name.isascii() for name in request.protocols):
            raise ConnectionDeny(400, "Sec-WebSocket-Protocol is not ASCII")
        return super().onConnect(request)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803
        """Queue a message for the application."""
        if self.application_queue.qsize() >= MAX_WAITING_MESSAGES:
            self.muted = True
            self.application_queue.put_nowait({"type": "websocket.disconnect", "code": 1008})
            self.serverClose(code=1008)
            return
        super().onMessage(payload, isBinary)

    def serverClose(self, code: int | None = None) -> None:
        """Close with `code`. Autobahn's own way would refuse 1001 and 1008 to a server."""
        self.sendCloseFrame(code=1000 if code is None else code)


class SocketFactory(WebSocketFactory):
    """Makes websocket connections."""

    protocol = Socket


class Factory(HTTPFactory):
    """Makes HTTP connections."""

    protocol = Channel

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.timeOut = IDLE_TIMEOUT_SECONDS

    def buildProtocol(self, addr: Any) -> Channel:
        """Make a connection and remember it for the shutdown."""
        channel: Channel = super().buildProtocol(addr)
        channel.requestFactory = Request
        return channel


class Server(DaphneServer):
    """Daphne with the limits of this module, over sockets that listen already."""

    def __init__(
        self,
        application: ASGIApplication,
        sockets: Sequence[socket.socket],
        limits: Limits,
        judge: Judge | None = None,
        takes_broken_bodies: TakesBrokenBodies | None = None,
    ) -> None:
        self._judge = judge
        self._takes_broken_bodies = takes_broken_bodies
        super().__init__(
            application,
            endpoints=["inherited"],
            server_name="",
            websocket_max_message_size=WEBSOCKET_MESSAGE_BYTES,
            websocket_max_frame_size=WEBSOCKET_MESSAGE_BYTES,
        )
        self.sockets = sockets
        self.limits = limits
        self.connections: dict[Any, dict[str, Any]] = {}
        self.ports: list[Any] = []

    def refuses_large_body(self, *, address: bytes, authorization: bytes, cookies: bytes) -> int:
        """Ask the application why it wants no large body from this client; 0 when it does."""
        if self._judge is None:
            return 0
        path = _path_of(address)
        return self._judge(path, authorization.decode("latin-1"), cookies.decode("latin-1"))

    def takes_broken_body(self, *, method: bytes, address: bytes) -> bool:
        """Ask the application whether it takes what has come of such a body, without the rest."""
        if self._takes_broken_bodies is None:
            return False
        return self._takes_broken_bodies(method.decode("latin-1"), _path_of(address))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self.http_factory = Factory(self)
        self.ws_factory = SocketFactory(self, server=None)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
            # A client at fault is told so (1009 for a message too long) instead of cut off.
            failByDrop=False,
            closeHandshakeTimeout=CLOSE_HANDSHAKE_SECONDS,
        )
        globalLogBeginner.beginLoggingTo(
            [_log_failures], redirectStandardIO=False, discardBuffer=True
        )
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        for listener in self.sockets:
            endpoint = AdoptedStreamServerEndpoint(reactor, listener.fileno(), listener.family)
            endpoint.listen(self.http_factory).addCallbacks(self.ports.append, self.listen_error)
        asyncio.set_event_loop(reactor._asyncioEventloop)
        reactor.addSystemEventTrigger("before", "shutdown", self._finish_requests)
        reactor.run()

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Start the application for one connection, with the request's body as a file."""
        if scope["type"] == "http":
            spooled, protocol.content = protocol.content, _EmptyBody()
            scope["extensions"] = {SPOOLED_BODY: spooled, BEGUN_AT: protocol.begun_at}
        queue = super().create_application(protocol, scope)
        if queue is not None:
            task = self.connections[protocol]["application_instance"]
            task.add_done_callback(lambda done: self._application_ended(protocol, done))
        return queue

    def _application_ended(self, protocol: Any, task: "asyncio.Task[None]") -> None:
        """Answer at once for an application that failed; Daphne looks once a second."""
        if task.cancelled() or task.exception() is None:
            return
        state = self.connections.get(protocol, {})
        state.pop("application_instance", None)
        error = task.exception()
        if isinstance(error, ClientDisconnectedError):
            return
        logger.error("The application failed: %s", error, exc_info=error)
        if "disconnected" not in state:
            protocol.handle_exception(error)

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Send what the application says, at the reader's pace.

        Raises ClientDisconnectedError for an HTTP client that is gone.
        """
        body = message.get("body", b"") if message["type"] == "http.response.body" else b""
        if body and protocol.method == b"HEAD":
            # Daphne would send all of a body but its first piece.
            body, message = b"", {**message, "body": b""}
        last = memoryview(body)[-(len(body) % SEND_PIECE_BYTES or SEND_PIECE_BYTES) :]
        for start in range(0, len(body) - len(last), SEND_PIECE_BYTES):
            piece = body[start : start + SEND_PIECE_BYTES]
            await self._send(protocol, {**message, "body": piece, "more_body": True})
        await self._send(protocol, {**message, "body": bytes(last)} if body else message)

    async def _send(self, protocol: Any, message: dict[str, Any]) -> None:
        is_http = isinstance(protocol, Request)
        state = self.connections.get(protocol)
        if is_http and (state is None or "disconnected" in state):
            raise ClientDisconnectedError("The client is gone.")
        channel = protocol.http_channel if is_http else _channel_of(protocol)
        await super().handle_reply(protocol, message)
        if channel is None or channel.writable.is_set():
            return
        try:
            async with asyncio.timeout(self.limits.stalled_reader_seconds):
                await channel.writable.wait()
        except TimeoutError:
            channel.transport.abortConnection()
            if is_http:
                raise ClientDisconnectedError("The client reads nothing any more.") from None

    def application_checker(self) -> None:
        """Each second, forget connections that are over, and cancel who goes on long after.

        Daphne's own would warn of each client that has left, and tell failures a second time.
        """
        for protocol, state in list(self.connections.items()):
            task, left_at = state.get("application_instance"), state.get("disconnected")
            if task is not None and task.done():
                del state["application_instance"]  # its end is told by `_application_ended`
            elif task is not None and left_at is not None:
                if time.time() - left_at > self.application_close_timeout:
                    task.cancel()
                continue
            if left_at is not None:
                del self.connections[protocol]
        reactor.callLater(1, self.application_checker)

    def protocol_disconnected(self, protocol: Any) -> None:
        """Note that a connection is gone and wake up whoever sends to it."""
        super().protocol_disconnected(protocol)
        channel = None if isinstance(protocol, Request) else _channel_of(protocol)
        if channel is not None:
            channel.writable.set()

    def kill_all_applications(self) -> defer.Deferred[Any]:
        """Cancel what still runs and wait for it."""
        tasks = [
            state["application_instance"]
            for state in self.connections.values()
            if "application_instance" in state
        ]
        for task in tasks:
            task.cancel()
        return defer.Deferred.fromFuture(
            asyncio.ensure_future(asyncio.gather(*tasks, return_exceptions=True))
        )

    @defer.inlineCallbacks
    def _finish_requests(self) -> Any:
        """Accept nothing new, say good-bye to websockets and let running requests finish.

        A body that counts in part is broken off: it may need an hour more.
        """
        for port in self.ports:
            yield defer.maybeDeferred(port.stopListening)
        for protocol in list(self.connections):
            if isinstance(protocol, Socket) and protocol.state == Socket.STATE_OPEN:
                protocol.serverClose(code=1001)
            elif isinstance(protocol, Request) and protocol.counts_in_part:
                protocol.http_channel.transport.abortConnection()
        deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
        while self._running_requests() and time.monotonic() < deadline:
            pause = defer.Deferred[None]()
            reactor.callLater(0.05, pause.callback, None)
            yield pause
        yield self.kill_all_applications()

    def _running_requests(self) -> list[Any]:
        return [
            protocol
            for protocol, state in self.connections.items()
            if isinstance(protocol, Request)
            and ("disconnected" not in state or _is_handed_over(protocol, state))
        ]


def _is_handed_over(request: Request, state: dict[str, Any]) -> bool:
    """Whether the application is at work on what had come of a body that broke off."""
    task = state.get("application_instance")
    return request.has_broken_off and task is not None and not task.done()


def _path_of(address: bytes) -> str:
    return address.partition(b"?")[0].decode("latin-1")


class _EmptyBody:
    """Stands in for a body that the application reads from its file."""

    closed = False

    def read(self, _size: int = -1) -> bytes:
        return b""

    def close(self) -> None:
        pass


def _channel_of(protocol: Any) -> Channel | None:
    """Return the HTTP connection that a websocket began as; it still watches the transport."""
    producer = getattr(getattr(protocol, "transport", None), "producer", None)
    return producer if isinstance(producer, Channel) else None


def _log_failures(event: dict[str, Any]) -> None:
    """Pass Twisted's failures on to the log; the rest of what it tells is noise."""
    failure = event.get("log_failure")
    if failure is not None:
        logger.error("A connection failed: %s", failure.getTraceback())


def _load_application(
    path: str,
) -> tuple[ASGIApplication, Judge | None, TakesBrokenBodies | None]:
    """Return an application and, where its module has them, its judges.

    The first tells who may send much, the second what counts although it broke off.
    """
    name, _, attribute = path.partition(":")
    module = importlib.import_module(name)
    application: ASGIApplication = getattr(module, attribute)
    judge = getattr(module, "refuses_large_body", None)
    return application, judge, getattr(module, "takes_broken_bodies", None)


def _allow_many_files() -> None:
    """Let this process open as many files as the machine lets it.

    A client takes one, and another for a large body. The 1024 that a shell usually allows are soon
    taken by clients that are slow, and nobody else could connect.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status."""
    parser = argparse.ArgumentParser(prog="odproject.serve")
    parser.add_argument("--fd", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--bind", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--application", default="odproject.asgi:application")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if options.fd:
        die_with_parent(signal.SIGKILL)
    _allow_many_files()
    sockets = [socket.socket(fileno=number) for number in options.fd]
    try:
        for address in options.bind:
            host, _, port = address.rpartition(":")
            sockets += bind_sockets(host.strip("[]"), int(port))
    except SupervisorError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the one sentence for the terminal
        return 1
    application, judge, takes_broken_bodies = _load_application(options.application)
    Server(application, sockets, Limits.from_environment(), judge, takes_broken_bodies).run()
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A thread that is still inside a view must not keep a stopped server alive: its transaction
    # is rolled back, which is what happens to it in any crash.
    os._exit(status)

"""HTTP for a WSGI application behind an ASGI server, through a fixed pool of threads.

Django keeps a database connection per thread, so a fixed pool keeps connections, where a thread
per request would open one per request. Compared with a2wsgi's own middleware, whose environment
and body reader are used here:

- a request body that the server has spooled (`odproject.serve`) is read from its file, never
  through memory;
- a response that is a file (`wsgi.file_wrapper`, which Django uses for FileResponse) is sent by
  the event loop, so that a slow reader holds no thread;
- a client who goes away ends the response instead of leaving a thread waiting for ever.
"""

import asyncio
import contextvars
import io
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO

from a2wsgi.wsgi import Body, build_environ

from odproject.core.environ import BEGUN_AT, CLIENT_LEFT, LATER
from odproject.fair_threads import FairThreads

SPOOLED_BODY = "odproject.spooled_body"
FILE_THREADS = 4
FILE_BLOCK_BYTES = 128 * 1024
# A sender that waits longer than the server's own limit for a stalled reader waits in vain.
SEND_TIMEOUT_SECONDS = 180.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ClientDisconnectedError(OSError):
    """The client is gone, or reads nothing any more; nothing can be sent to it."""


class FileResponse:
    """What `wsgi.file_wrapper` makes: a file to be sent block by block, then closed."""

    def __init__(self, file: BinaryIO, block_bytes: int = FILE_BLOCK_BYTES) -> None:
        self.file = file
        self.block_bytes = max(block_bytes, FILE_BLOCK_BYTES)

    def __iter__(self) -> Iterator[bytes]:
        while block := self.file.read(self.block_bytes):
            yield block

    def close(self) -> None:
        """Close the file, which also ends Django's response."""
        close = getattr(self.file, "close", None)
        if close is not None:
            close()


class Bridge:
    """An ASGI application, for the scope type `http`, that serves `wsgi_app`.

    Requests go through `threads` threads; those that take long have threads of their own.
    `slow_kind` tells from the ASGI scope which kind one is of, None for the others, and
    `slow_threads` how many each kind has; one that turns out to take long names its kind itself
    (`LATER`). For those, whom `asker` tells apart take turns. One that `outlasts_client` gets its
    turn although its client has left.
    """

    def __init__(
        self,
        wsgi_app: WSGIApplication,
        threads: int,
        *,
        slow_threads: Mapping[str, int],
        slow_kind: Callable[[Scope], str | None],
        asker: Callable[[Scope], str] = lambda scope: "",
        outlasts_client: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self.wsgi_app = wsgi_app
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="web")
        # What takes long waits here for its like, and holds up nothing else.
        self.slow_threads = {
            kind: FairThreads(count, name=kind) for kind, count in slow_threads.items()
        }
        self.slow_kind = slow_kind
        self.asker = asker
        self.outlasts_client = outlasts_client
        # Reading a file must not wait for views, which may all wait for the database.
        self.file_threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="file")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Exceptions of the application pass through."""
        if scope["type"] != "http":
            raise ValueError(f"This application answers http, not {scope['type']}.")
        loop = asyncio.get_running_loop()
        exchange = _Exchange(self.wsgi_app, _environ_of(scope, receive, loop), send, loop)
        kind, outlasts = self.slow_kind(scope), self.outlasts_client(scope)
        rest = await self._run(exchange, kind, scope, outlasts_client=outlasts)
        if later := exchange.environ[LATER]:
            exchange.empty_body()
            rest = await self._run(exchange, later, scope, outlasts_client=True)
        if isinstance(rest, bytes):
            await exchange.send_whole(rest)
        elif rest is not None:
            await self._send_file(exchange, rest, loop)

    async def _run(
        self, exchange: "_Exchange", kind: str | None, scope: Scope, *, outlasts_client: bool
    ) -> bytes | FileResponse | None:
        """Run the application in the threads of a kind, when there is one for it.

        What has begun is not left half done, whether its client waits or not.
        """
        run = partial(contextvars.copy_context().run, exchange.run)
        work: Future[bytes | FileResponse | None]
        if kind is None:
            work = self.threads.submit(run)
        else:
            work = self.slow_threads[kind].submit(self.asker(scope), run)
        end = asyncio.wrap_future(work)
        try:
            return await (asyncio.shield(end) if outlasts_client else end)
        except asyncio.CancelledError:
            # The client left long ago. What has not begun never will; a view that runs may look
            # whether it is wanted, or ends by itself, and nobody wants its file.
            exchange.environ[CLIENT_LEFT].set()
            if not outlasts_client and work.cancel():
                exchange.discard_body()
            else:
                work.add_done_callback(_close_unwanted)
            raise

    async def _send_file(
        self, exchange: "_Exchange", response: FileResponse, loop: asyncio.AbstractEventLoop
    ) -> None:
        blocks = iter(response if exchange.environ["REQUEST_METHOD"] != "HEAD" else ())
        try:
            while block := await loop.run_in_executor(self.file_threads, next, blocks, b""):
                await exchange.send_body(block)
            await exchange.send_body(b"", more_body=False)
        finally:
            # Closing ends Django's request, which looks after the thread's database connection.
            self.threads.submit(response.close)


@dataclass
class _Exchange:
    """One request and its response, seen from the thread that runs the application."""

    wsgi_app: WSGIApplication
    environ: dict[str, Any]
    send: Send
    loop: asyncio.AbstractEventLoop
    start_message: Message | None = None
    start_sent: bool = False

    def run(self) -> bytes | FileResponse | None:
        """Run the application; return what the loop still has to send, or None for nothing.

        A response that is complete in memory is returned as its bytes, a file as such; anything
        else is sent from here, piece by piece at the reader's pace, because an iterator may hold
        on to what belongs to this thread.
        """
        try:
            response = self.wsgi_app(self.environ, self.start_response)
            if isinstance(response, FileResponse):
                return response
            try:
                if isinstance(response, list | tuple) or not getattr(response, "streaming", True):
                    return b"".join(response)
                self._stream(response)
                return None
            finally:
                close = getattr(response, "close", None)
                if close is not None:
                    close()
        finally:
            self.discard_body()

    def discard_body(self) -> None:
        """Give back the disk that the request's body takes."""
        body = self.environ["wsgi.input"]
        if isinstance(body, io.IOBase) or hasattr(body, "close"):
            body.close()

    def empty_body(self) -> None:
        """Have the application called again with nothing to read."""
        self.environ |= {"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"}

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Note status and headers, which are sent with the first bytes (PEP 3333)."""
        if exc_info is not None and self.start_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        self.start_message = {
            "type": "http.response.start",
            "status": int(status.split(" ", 1)[0]),
            "headers": [
                (name.strip().encode("latin-1").lower(), value.strip().encode("latin-1"))
                for name, value in headers
            ],
        }
        return lambda chunk: self._from_thread(self.send_body(chunk))

    def _stream(self, response: Iterable[bytes]) -> None:
        for chunk in response:
            if chunk:
                self._from_thread(self.send_body(chunk))
        self._from_thread(self.send_body(b"", more_body=False))

    def _from_thread(self, sending: Any) -> None:
        asyncio.run_coroutine_threadsafe(sending, self.loop).result(SEND_TIMEOUT_SECONDS)

    async def send_start(self) -> None:
        """Send status and headers, once."""
        if not self.start_sent:
            if self.start_message is None:
                raise RuntimeError("The application gave a body without calling start_response.")
            self.start_sent = True
            await self.send(self.start_message)

    async def send_body(self, chunk: bytes, *, more_body: bool = True) -> None:
        """Send a piece of the body, after the headers."""
        await self.send_start()
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more_body})

    async def send_whole(self, body: bytes) -> None:
        """Send the whole response."""
        await self.send_body(body, more_body=False)


def _close_unwanted(work: "Future[bytes | FileResponse | None]") -> None:
    if not work.cancelled() and work.exception() is None:
        result = work.result()
        if isinstance(result, FileResponse):
            result.close()


def _environ_of(scope: Scope, receive: Receive, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    environ: dict[str, Any] = build_environ(scope, Body(loop, receive))
    environ["wsgi.errors"] = sys.stderr
    environ["wsgi.file_wrapper"] = FileResponse
    extensions = scope.get("extensions") or {}
    environ[LATER] = ""
    environ[BEGUN_AT] = extensions.get(BEGUN_AT)
    environ[CLIENT_LEFT] = threading.Event()
    spooled = extensions.pop(SPOOLED_BODY, None)
    if spooled is not None:
        environ["wsgi.input"] = spooled
        # Also right for a chunked request, which announces no length.
        environ["CONTENT_LENGTH"] = str(spooled.seek(0, io.SEEK_END))
        spooled.seek(0)
    return environ

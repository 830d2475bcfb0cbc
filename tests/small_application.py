"""A small application for test_serving: what a request meets, without Django."""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odproject.bridge import Bridge
from odproject.core.environ import LATER

PIECE = b"x" * 65536
counts = {"calls": 0, "produced_bytes": 0, "closed": 0, "websockets_ended": 0, "broken_bytes": 0}
release = threading.Event()


def _produce(total_bytes: int) -> Iterator[bytes]:
    try:
        for _ in range(total_bytes // len(PIECE)):
            counts["produced_bytes"] += len(PIECE)
            yield PIECE
    finally:
        counts["closed"] += 1


def _fail_after_a_piece() -> Iterator[bytes]:
    yield PIECE
    raise ValueError("half way")


def _body_facts(environ: dict[str, Any]) -> bytes:
    digest, length_bytes = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        length_bytes += len(piece)
    facts = {
        "length": length_bytes,
        "announced": environ["CONTENT_LENGTH"],
        "sha256": digest.hexdigest(),
        "path": environ["PATH_INFO"],
        "script_name": environ["SCRIPT_NAME"],
        "query": environ["QUERY_STRING"],
        "begun_at": environ["odproject.begun_at"],
        "thread": threading.current_thread().name.partition("_")[0],
        "in_memory": not hasattr(environ["wsgi.input"], "fileno")
        or type(environ["wsgi.input"]).__name__ == "BytesIO",
    }
    return json.dumps(facts).encode()


def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer by path."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/fail":
        raise ValueError("at once")
    if path == "/counts":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(counts).encode()]
    counts["calls"] += 1
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    if path == "/stream":
        return _produce(int(query))
    if path == "/fail-half-way":
        return _fail_after_a_piece()
    if path == "/file":
        return environ["wsgi.file_wrapper"](Path(os.environ["TEST_FILE"]).open("rb"))
    if path == "/wait":
        release.wait(30)
        return [b"waited"]
    if path == "/release":
        release.set()
    if path == "/later" and environ.get(LATER) == "":
        environ[LATER] = "waiting"  # and nobody gets what is answered now
    facts = _body_facts(environ)
    if path == "/broken":
        counts["broken_bytes"] += json.loads(facts)["length"]
        if query:
            release.wait(0.5)  # so long it takes to write down what has come
            Path(query).write_text(str(counts["broken_bytes"]))
    return [facts]


def takes_broken_bodies(method: str, path: str) -> bool:
    """Those of one route count."""
    return (method, path) == ("PATCH", "/broken")


_http = Bridge(
    wsgi,
    int(os.environ["OD_WEB_THREADS"]),
    slow_threads={"waiting": 1},
    slow_kind=lambda scope: "waiting" if scope["path"] == "/wait" else None,
)


async def _websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text") or ""
        if text.startswith("close "):
            await send({"type": "websocket.close", "code": int(text.split()[1])})
        elif text == "sleep":
            await asyncio.sleep(600)
        elif text == "flood":
            for _ in range(3000):
                counts["produced_bytes"] += len(PIECE)
                await send({"type": "websocket.send", "bytes": PIECE})
        else:
            await send({"type": "websocket.send", "text": str(len(text))})
    counts["websockets_ended"] += 1


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Route by kind."""
    if scope["type"] == "http":
        await _http(scope, receive, send)
    else:
        await _websocket(receive, send)

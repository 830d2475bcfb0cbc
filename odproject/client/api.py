"""`/api/v1/` as a client should use it: with fresh tokens, patience, and keys against repeats."""

import base64
import contextlib
import email.message
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import httpx

from odproject.client.errors import ClientError, RefusalError, SessionEndedError
from odproject.client.session import Session, SessionFile, session_of_key

PAGE_SIZE = 200
TRIES = 6
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
RENEW_BEFORE_SECONDS = 60.0
LARGE_BYTES = 16 * 1024**2  # from here on a file goes in pieces
PIECE_BYTES = 8 * 1024**2
SENT_BYTES = 64 * 1024
TUS = {"Tus-Resumable": "1.0.0"}
FINAL_STATUSES = {400, 404, 413, 415, 422}  # of an upload in pieces that cannot go on
TIMEOUT = httpx.Timeout(30.0, read=600.0, write=600.0)  # an upload is inspected for minutes

Answer = TypeVar("Answer")


def log_in(service: str, email: str, password: str, *, register: bool = False) -> Session:
    """Begin a session, as a new user if so asked. Raises ClientError."""
    keys = {"email": email, "password": password}
    try:
        with httpx.Client(base_url=service, timeout=TIMEOUT) as http:
            if register:
                _accepted(http.post("/api/v1/users/", json=keys))
            tokens = _document(http.post("/api/v1/tokens/", json=keys))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ClientError(f"{service} cannot be reached: {error}") from error
    return Session(service, email, tokens["access"], tokens["refresh"])


def log_in_with_key(service: str, key: str) -> Session:
    """A session that is an API key, once the service has told whose it is. Raises ClientError."""
    session = session_of_key(service, key)
    try:
        with httpx.Client(base_url=service, timeout=TIMEOUT) as http:
            headers = {"Authorization": f"Bearer {key}"}
            user = _document(http.get("/api/v1/me/", headers=headers))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ClientError(f"{service} cannot be reached: {error}") from error
    return replace(session, email=user["email"])


class Api:
    """The service as one user sees it.

    A request that broke off, or that the service was too busy for, is sent again some times; what
    must not take effect twice carries a key. Every method raises ClientError.
    """

    def __init__(
        self,
        session_file: SessionFile,
        *,
        session: Session | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file = session_file
        self._is_given = session is not None  # by the environment, whatever the file says
        self._session = session or session_file.read()
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self._session.service, timeout=TIMEOUT, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """A document."""
        return _document(self._ask("GET", path, params=params or None))

    def post(self, path: str, keys: dict[str, Any] | None = None, *, once: bool = False) -> Any:
        """Have something done; `once`: at most once, however often it has to be sent."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if once else None
        return _document(self._ask("POST", path, json=keys or {}, headers=headers))

    def every(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every row of a list, page by page."""
        page = self.get(path, page_size=PAGE_SIZE, **params)
        yield from page["results"]
        while page["next"]:
            # Only the query counts: a proxy may know the service by another name.
            page = self.get(f"{path}?{httpx.URL(page['next']).query.decode()}")
            yield from page["results"]

    def upload(self, dataset_id: int, path: Path, on_bytes: Callable[[int], object]) -> Any:
        """Upload a file, which is charged once, and return the report.

        A large one goes on where it broke off, in an earlier command too. `on_bytes` hears how many
        more bytes were sent, and of fewer when they are sent again. Raises OSError where the file
        cannot be read.
        """
        if path.stat().st_size >= LARGE_BYTES:
            return self._upload_in_pieces(dataset_id, path, on_bytes)
        with path.open("rb") as content:
            report = self._ask(
                "POST",
                f"/api/v1/datasets/{dataset_id}/uploads/",
                files={"file": (sent_name(path), _Watched(content, on_bytes))},
                headers={"Idempotency-Key": uuid.uuid4().hex},
            )
        return _document(report)

    def _upload_in_pieces(
        self, dataset_id: int, path: Path, on_bytes: Callable[[int], object]
    ) -> Any:
        """Upload by the protocol tus."""
        about = path.stat()
        what = [dataset_id, str(path.resolve()), about.st_size, about.st_mtime_ns]
        mark = json.dumps([self._session.service, self._session.email, *what])
        place = self._begun_at(mark) or self._begin(dataset_id, path, about.st_size)
        self._file.note_upload(mark, place)
        with path.open("rb") as content:
            watched = _Watched(content, on_bytes)
            try:
                answer = self._patiently(lambda: self._send_piece(place, watched))
                while "Location" not in answer.headers:
                    answer = self._patiently(lambda: self._send_piece(place, watched))
            except RefusalError as refusal:
                if refusal.status in FINAL_STATUSES:  # else it can go on
                    self._file.note_upload(mark, None)
                raise
        report = self.get(answer.headers["Location"])
        self._file.note_upload(mark, None)
        return report

    def _begun_at(self, mark: str) -> str | None:
        """Where an earlier command began the same, if the service still knows it."""
        place = self._file.begun_uploads().get(mark)
        if place is not None:
            try:
                self._ask("HEAD", place, headers=TUS)
            except RefusalError as refusal:
                if refusal.status != 404:
                    raise
                return None
        return place

    def _begin(self, dataset_id: int, path: Path, length_bytes: int) -> str:
        name = base64.b64encode(sent_name(path).encode()).decode()
        headers = {
            "Upload-Length": str(length_bytes),
            "Upload-Metadata": f"filename {name}",
            "Idempotency-Key": uuid.uuid4().hex,
        }
        places = f"/api/v1/datasets/{dataset_id}/resumable-uploads/"
        begun = self._ask("POST", places, headers={**TUS, **headers})
        return str(begun.headers["Location"])

    def _send_piece(self, place: str, content: "_Watched") -> httpx.Response:
        """Send what comes next by what the service has, which a broken try may have added to."""
        has = _accepted(self._http.head(place, headers={**TUS, **self._authorization()}))
        offset, length = (int(has.headers[f"Upload-{name}"]) for name in ("Offset", "Length"))
        content.seek(offset)
        piece_bytes = min(PIECE_BYTES, length - offset)
        headers = {
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(piece_bytes),
        }
        return _accepted(
            self._http.patch(
                place,
                content=content.pieces(piece_bytes),
                headers={**TUS, **headers, **self._authorization()},
            )
        )

    def download(self, path: str, destination: Path, **params: Any) -> str:
        """Save a file, going on where a connection broke, and return the name it has there.

        Raises OSError where it cannot be written.
        """
        with destination.open("wb") as out:
            return self._patiently(lambda: self._receive(path, out, params or None))

    def log_out(self) -> None:
        """End the session and its tokens, there and here; an API key is forgotten here only."""
        if self._is_given:
            raise ClientError("OD_API_KEY is set; without it there is nothing to log out of.")
        if not self._session.is_of_a_key:
            with contextlib.suppress(SessionEndedError):
                self._ask("POST", "/api/v1/tokens/revoke/")
        self._file.forget()

    # -- one request

    def _ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        def send() -> httpx.Response:
            whole = {**(headers or {}), **self._authorization()}
            return _accepted(self._http.request(method, path, headers=whole, **request))

        return self._patiently(send)

    def _receive(self, path: str, out: BinaryIO, params: dict[str, Any] | None) -> str:
        """Append what is missing, and return the file's name."""
        begin = out.tell()
        headers = {**self._authorization(), "Accept-Encoding": "identity"}  # whose bytes count
        if begin:
            headers["Range"] = f"bytes={begin}-"
        with self._http.stream("GET", path, headers=headers, params=params) as response:
            if not response.is_success and not (begin and response.status_code == 416):
                response.read()
                raise RefusalError(response)
            if response.status_code == 200:  # also for what is made anew each time
                out.seek(0)
                out.truncate()
            if response.is_success:  # else nothing was missing
                for chunk in response.iter_bytes():
                    out.write(chunk)
            return _name_told(response)

    def _patiently(self, act: Callable[[], Answer]) -> Answer:
        """Act, and again while what hinders it may pass."""
        for number in range(1, TRIES + 1):
            pause_seconds = FIRST_PAUSE_SECONDS * 2 ** (number - 1)
            try:
                return self._with_valid_token(act)
            except httpx.TransportError as error:
                if number == TRIES:
                    said = str(error) or type(error).__name__
                    raise ClientError(
                        f"{self._session.service} cannot be reached: {said}"
                    ) from error
            except RefusalError as refusal:
                pause_seconds = max(pause_seconds, refusal.retry_after_seconds)
                if not refusal.may_pass or number == TRIES or pause_seconds > LONGEST_PAUSE_SECONDS:
                    raise
            self._sleep(pause_seconds)
        raise AssertionError("the last try returns or raises")

    # -- tokens

    def _with_valid_token(self, act: Callable[[], Answer]) -> Answer:
        """Act, and once more with a new token where that of now is refused."""
        try:
            return act()
        except RefusalError as refusal:
            if refusal.status != 401 or self._session.is_of_a_key:
                raise
        self._renew(self._session.access)
        return act()

    def _authorization(self) -> dict[str, str]:
        if self._session.expires_within(RENEW_BEFORE_SECONDS):
            self._renew(self._session.access)
        return {"Authorization": f"Bearer {self._session.access}"}

    def _renew(self, stale_access: str) -> None:
        """Exchange the tokens, or take those that another command got for them."""
        with self._file.in_turn():
            now = self._file.read()
            if (now.service, now.email) != (self._session.service, self._session.email):
                # The rest was meant for somebody else, and these tokens may be for another service.
                told = f"{now.email} has logged in meanwhile: log in again and repeat the command."
                raise ClientError(told)
            self._session = now
            if now.access != stale_access:
                return
            keys = {"refresh": now.refresh}
            answer = self._http.post("/api/v1/tokens/refresh/", json=keys)
            if answer.status_code == 401:
                raise SessionEndedError("The session has ended: `login EMAIL` again.")
            tokens = _document(answer)
            self._session = replace(now, access=tokens["access"], refresh=tokens["refresh"])
            self._file.write(self._session)


def sent_name(path: Path) -> str:
    """The file's name as the service learns it: in UTF-8, and quoted as browsers do."""
    return os.fsencode(path.name).decode(errors="replace").replace('"', "%22")


def _accepted(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:  # a redirection is none: a POST would become a GET
        raise RefusalError(answer)
    return answer


def _document(answer: httpx.Response) -> Any:
    try:
        return _accepted(answer).json()
    except ValueError as error:
        told = f"What answers at {answer.url} is not the service."
        raise ClientError(told) from error


def _name_told(answer: httpx.Response) -> str:
    """The file name of a Content-Disposition (RFC 6266), or an empty one."""
    header = email.message.Message()
    header["Content-Disposition"] = answer.headers.get("Content-Disposition", "attachment")
    return header.get_filename("")


class _Watched:
    """A file that tells how many bytes of it were read; httpx streams it."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], object]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self._file.tell()
        position = self._file.seek(offset, whence)
        self._on_bytes(position - before)
        return position

    def pieces(self, length_bytes: int) -> Iterator[bytes]:
        """So many bytes from here on, as they are sent."""
        while length_bytes and (data := self.read(min(length_bytes, SENT_BYTES))):
            length_bytes -= len(data)
            yield data

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

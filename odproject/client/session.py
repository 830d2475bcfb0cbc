"""What all commands of a user share on disk: the tokens, and where large uploads have got to."""

import base64
import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odproject.client.errors import ClientError

KEY_START = "odk_"
MOST_BEGUN_UPLOADS = 100  # the oldest are forgotten: the service keeps them for a day


@dataclass(frozen=True)
class Session:
    """Where somebody is logged in, and the tokens of now; or an API key in place of `access`."""

    service: str
    email: str
    access: str
    refresh: str

    @property
    def is_of_a_key(self) -> bool:
        """Whether it is an API key, which is not exchanged for another one."""
        return self.access.startswith(KEY_START)

    def expires_within(self, seconds: float) -> bool:
        """Whether the access token ends so soon, by this computer's clock; a key tells nothing."""
        if self.is_of_a_key:
            return False
        payload = self.access.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - time.time() < seconds


def session_of_key(service: str, key: str) -> Session:
    """A session that is an API key; raises ClientError for what is none."""
    if not (key.startswith(KEY_START) and key.isascii() and key.isprintable()):
        raise ClientError(f"That is no API key: one begins with {KEY_START}.")
    return Session(service, "", key, "")


class SessionFile:
    """The session on disk, for its owner's eyes only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Session:
        """The session; raises ClientError when nobody is logged in."""
        try:
            return Session(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            raise ClientError("Nobody is logged in: `login EMAIL` comes first.") from None
        except (ValueError, TypeError):
            raise ClientError(f"{self._path} holds no session: `login EMAIL` again.") from None

    def write(self, session: Session) -> None:
        """Replace the session as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(self._path, asdict(session))

    def forget(self) -> None:
        """Log out here."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Wait for other commands that exchange tokens: each refresh token is good for one."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- where large uploads go on, should they break off

    def begun_uploads(self) -> dict[str, str]:
        """The addresses of uploads that have begun, by what their files were."""
        try:
            return {str(mark): str(place) for mark, place in json.loads(self._uploads.read_text())}
        except (FileNotFoundError, ValueError, TypeError):
            return {}  # none yet, or not ours

    def note_upload(self, mark: str, place: str | None) -> None:
        """Note where the upload of a file is, or with None that it has ended."""
        with self.in_turn():
            begun = self.begun_uploads()
            begun.pop(mark, None)
            if place is not None:
                begun[mark] = place
            _replace(self._uploads, list(begun.items())[-MOST_BEGUN_UPLOADS:])

    @property
    def _uploads(self) -> Path:
        return self._path.with_suffix(".uploads")


def _replace(path: Path, document: Any) -> None:
    """Write a file as a whole, which only its owner may read."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(document, file)
    Path(name).replace(path)


def session_path() -> Path:
    """Where the session is kept: `OD_SESSION_FILE`, or the user's folder of settings."""
    chosen = os.environ.get("OD_SESSION_FILE")
    if chosen:
        return Path(chosen)
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "odproject" / "session.json"

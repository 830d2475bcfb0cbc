"""Who is asking: a JSON web token in the Authorization header."""

import copy
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.models import SESSION_CLAIM, Session, User
from accounts.selectors import live_session
from odproject.core.environ import BEGUN_AT


@dataclass(frozen=True)
class Presence:
    """A user who is logged in: by which session, and until when."""

    user: User
    session_id: int
    expires_at: datetime


class _TokenInTime(AccessToken):
    """An access token that counts although it has expired within the last `late_seconds`."""

    def __init__(self, token: Any, *, late_seconds: float) -> None:
        self._token_backend = copy.copy(self.token_backend)
        self._token_backend.leeway = late_seconds
        super().__init__(token)


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <token>` of a session that nobody has ended.

    What counts is that the token had not expired when the request began: a body may take longer
    than a token lives, and the server that let it in had looked at the token. Whether the session
    lives is asked now.
    """

    _late_seconds = 0.0

    def authenticate(self, request: Request) -> tuple[Any, Token] | None:
        """The user and the token; None without one. Raises AuthenticationFailed (401)."""
        begun_at = request.META.get(BEGUN_AT)
        self._late_seconds = max(0.0, time.time() - begun_at) if begun_at else 0.0
        return super().authenticate(request)

    def get_validated_token(self, raw_token: bytes) -> Token:
        """A token that we signed, in time; raises InvalidToken."""
        try:
            return _TokenInTime(raw_token, late_seconds=self._late_seconds)
        except TokenError:
            return super().get_validated_token(raw_token)  # which says why not

    def authenticate_header(self, request: Request | HttpRequest) -> str:
        """The scheme that a 401 names."""
        return "Bearer"

    def get_raw_token(self, header: bytes) -> bytes | None:
        """The token of a header; None for another scheme, whose name has no case (RFC 9110)."""
        scheme, _, rest = header.partition(b" ")
        if scheme.lower() == b"bearer":
            header = b"Bearer " + rest
        return super().get_raw_token(header)

    def get_user(self, validated_token: Token) -> Any:
        """The user of a token; raises AuthenticationFailed for a session that has ended."""
        return session_of_token(validated_token).user


def session_of_token(token: Token) -> Session:
    """The live session of a token and its user, in one query; raises AuthenticationFailed."""
    session_id = token.get(SESSION_CLAIM)
    session = live_session(session_id=session_id) if isinstance(session_id, int) else None
    if session is None or str(session.user_id) != str(token.get("user_id")):
        raise InvalidToken("The session of this token has ended.")
    return session


def presence_of_access_token(raw_token: str) -> Presence:
    """Who holds a raw access token; raises AuthenticationFailed."""
    try:
        token = AccessToken(raw_token)  # type: ignore[arg-type]
        session = session_of_token(token)
    except (TokenError, InvalidToken) as error:
        raise exceptions.AuthenticationFailed(str(error)) from error
    return Presence(session.user, session.pk, expiry_of(token))


def expiry_of(token: Any) -> datetime:
    """When a validated token ends."""
    return datetime.fromtimestamp(token["exp"], UTC)

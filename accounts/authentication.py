"""Who is asking: a JSON web token in the Authorization header."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.models import Session, User
from accounts.selectors import live_session

SESSION_CLAIM = "sid"


@dataclass(frozen=True)
class Presence:
    """A user who is logged in: by which session, and until when."""

    user: User
    session_id: int
    expires_at: datetime


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <token>` of a session that nobody has ended."""

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

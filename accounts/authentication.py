"""Who is asking: a JSON web token or an API key in the Authorization header."""

import copy
import time
from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest
from django.utils.crypto import constant_time_compare
from rest_framework import exceptions
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.api_keys import note_use
from accounts.key_text import looks_like_a_key, signed_key_text
from accounts.models import SESSION_CLAIM, Session
from accounts.presence import Presence
from accounts.selectors import live_session, living_api_keys
from odproject.core.environ import BEGUN_AT
from odproject.core.errors import DomainError


class _TokenInTime(AccessToken):
    """An access token that counts although it has expired within the last `late_seconds`."""

    def __init__(self, token: Any, *, late_seconds: float) -> None:
        self._token_backend = copy.copy(self.token_backend)
        self._token_backend.leeway = late_seconds
        super().__init__(token)


class ReadOnlyKeyError(DomainError):
    """The key is for looking only."""

    status = 403
    code = "read_only_key"
    title = "The API key is read only"


class SessionNeededError(DomainError):
    """Only who has logged in may do this, and no program with a key."""

    status = 403
    code = "session_needed"
    title = "Not with an API key"


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <token>` of a session that nobody has ended, or an API key.

    What counts is that the token had not expired when the request began: a body may take longer
    than a token lives, and the server that let it in had looked at the token. Whether the session
    lives is asked now. It is the same with a key.
    """

    _late_seconds = 0.0

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """The user and their Presence; None without a token.

        Raises AuthenticationFailed (401), and ReadOnlyKeyError (403) for a request that would
        write.
        """
        begun_at = request.META.get(BEGUN_AT)
        self._late_seconds = max(0.0, time.time() - begun_at) if begun_at else 0.0
        header = self.get_header(request)
        raw_token = None if header is None else self.get_raw_token(header)
        if raw_token is None:
            return None
        text = raw_token.decode("latin-1")
        if not looks_like_a_key(text):
            presence = _presence_of_token(self.get_validated_token(raw_token))
            return presence.user, presence
        key = presence_of_api_key(text, late_seconds=self._late_seconds)
        if key.is_read_only and _would_write(request):
            raise ReadOnlyKeyError("This API key is for reading only.")
        return key.user, key

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


class SessionRequired(BasePermission):
    """What concerns the account itself: a key that was stolen must not make others, or stay."""

    refuses = (403,)

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whether it is a user at all; raises SessionNeededError (403) for one with a key."""
        if isinstance(request.auth, Presence) and request.auth.api_key is not None:
            raise SessionNeededError("An API key does not do this; log in.")
        return request.user is not None


def _would_write(request: Request) -> bool:
    """Whether a request is there to change something: not where its view says `only_reads`."""
    view = request.parser_context.get("view")
    return request.method not in SAFE_METHODS and not getattr(view, "only_reads", False)


def _session_of_token(token: Token) -> Session:
    """The live session of a token and its user, in one query; raises AuthenticationFailed."""
    session_id = token.get(SESSION_CLAIM)
    session = live_session(session_id=session_id) if isinstance(session_id, int) else None
    if session is None or str(session.user_id) != str(token.get("user_id")):
        raise InvalidToken("The session of this token has ended.")
    return session


def _presence_of_token(token: Token) -> Presence:
    return Presence(_session_of_token(token), datetime.fromtimestamp(token["exp"], UTC))


def presence_of_bearer(text: str) -> Presence:
    """Who shows a raw access token or an API key; raises AuthenticationFailed."""
    if looks_like_a_key(text):
        return presence_of_api_key(text)
    try:
        return _presence_of_token(AccessToken(text))  # type: ignore[arg-type]
    except (TokenError, InvalidToken) as error:
        raise exceptions.AuthenticationFailed(str(error)) from error


def presence_of_api_key(text: str, *, late_seconds: float = 0.0) -> Presence:
    """Who shows a key that lived so many seconds ago; raises AuthenticationFailed.

    The user is a plain one here, whatever they may do when they log in: a key lies in files of
    programs, where powers over others have no place.
    """
    told = signed_key_text(text)
    now = datetime.fromtimestamp(time.time() - late_seconds, UTC)
    key = None
    if told is not None:
        keys = living_api_keys(now=now).select_related("user")
        key = keys.filter(prefix=told.prefix).first()
    if told is None or key is None or not constant_time_compare(key.digest, told.digest):
        raise exceptions.AuthenticationFailed("The API key is not valid, or not any more.")
    note_use(key=key)
    key.user.is_staff = key.user.is_superuser = False  # of this request's user; never saved
    return Presence(key, key.expires_at)

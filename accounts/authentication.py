"""Who is asking: a JSON web token in the Authorization header."""

from datetime import UTC, datetime
from typing import Any, cast

from django.http import HttpRequest
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.models import User


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <token>`; anything else is no authentication at all."""

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
        """The user of a token; raises AuthenticationFailed, also for an id that is no number."""
        try:
            return super().get_user(validated_token)
        except (ValueError, TypeError) as error:
            raise InvalidToken("The token names no user.") from error


def user_of_access_token(raw_token: str) -> tuple[User, datetime]:
    """The user of a raw access token and when it expires; raises AuthenticationFailed."""
    try:
        token = AccessToken(raw_token)  # type: ignore[arg-type]
        user = BearerAuthentication().get_user(token)
    except (TokenError, InvalidToken) as error:
        raise exceptions.AuthenticationFailed(str(error)) from error
    return cast(User, user), datetime.fromtimestamp(token["exp"], UTC)

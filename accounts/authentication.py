"""Who is asking: a JSON web token in the Authorization header."""

from datetime import UTC, datetime
from typing import cast

from django.http import HttpRequest
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.tokens import AccessToken

from accounts.models import User


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <token>`; anything else is no authentication at all."""

    def authenticate_header(self, request: Request | HttpRequest) -> str:
        """The scheme that a 401 names."""
        return "Bearer"


def user_of_access_token(raw_token: str) -> tuple[User, datetime]:
    """The user of a raw access token and when it expires; raises AuthenticationFailed."""
    try:
        token = AccessToken(raw_token)  # type: ignore[arg-type]
        user = JWTAuthentication().get_user(token)
    except (TokenError, InvalidToken) as error:
        raise exceptions.AuthenticationFailed(str(error)) from error
    return cast(User, user), datetime.fromtimestamp(token["exp"], UTC)

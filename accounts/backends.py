"""How the admin's log-in page asks who somebody is: as the API does, with the same limits."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from accounts.limits import TooManyAttemptsError
from accounts.models import User
from accounts.services import InvalidCredentialsError, verified_user
from odproject.core.api import client_address


class LimitedBackend(ModelBackend):
    """Django's users and permissions behind our check of credentials."""

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> User | None:
        """The user of these credentials, or None; too many attempts are as good as wrong ones."""
        if username is None or password is None:
            return None
        address = "" if request is None else client_address(request)
        try:
            return verified_user(email=username, password=password, client_address=address)
        except InvalidCredentialsError:
            return None
        except TooManyAttemptsError as error:
            raise PermissionDenied from error

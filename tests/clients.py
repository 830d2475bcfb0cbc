"""Clients of the API inside this process, logged in as somebody."""

from datetime import timedelta
from typing import Any

from rest_framework.test import APIClient

from accounts.api_keys import create_api_key
from accounts.models import ApiKey, Session, User
from accounts.services import log_in
from tests.factories import PASSWORD


def client_of(user: User) -> APIClient:
    """A client with an access token of a session of its own."""
    tokens = log_in(email=user.email, password=PASSWORD, access_lifetime=timedelta(minutes=5))
    return client_with(tokens.access)


def key_of(user: User, name: str = "program", **terms: Any) -> tuple[ApiKey, str]:
    """An API key of a user, made by a session of its own, and its text."""
    log_in(email=user.email, password=PASSWORD)
    session = Session.objects.filter(user=user).latest("pk")
    return create_api_key(session=session, name=name, **terms)


def client_with(token: str) -> APIClient:
    """A client that shows this token, or this key."""
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client

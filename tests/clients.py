"""Clients of the API inside this process, logged in as somebody."""

from datetime import timedelta

from rest_framework.test import APIClient

from accounts.models import User
from accounts.services import log_in
from tests.factories import PASSWORD


def client_of(user: User) -> APIClient:
    """A client with an access token of a session of its own."""
    client = APIClient()
    tokens = log_in(email=user.email, password=PASSWORD, access_lifetime=timedelta(minutes=5))
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens.access}")
    return client

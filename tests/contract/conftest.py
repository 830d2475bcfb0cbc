"""Customers of the running service, and two jobs whose traces most of these tests read."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.client import Api
from tests.contract.story import FailedStory, Story, tell_failed_story, tell_story
from tests.service import Service


@pytest.fixture(scope="session")
def anonymous(service: Service) -> Iterator[Api]:
    """Somebody without a token."""
    with httpx.Client(base_url=service.base_url, timeout=120, trust_env=False) as http:
        yield Api(http, service.ws_url)


@pytest.fixture(scope="session")
def administrator(anonymous: Api, service: Service) -> Api:
    return anonymous.log_in(service.admin_email, service.admin_password)


@pytest.fixture(scope="module")
def customer(anonymous: Api) -> Api:
    """A user of the module; what tests make of it goes into datasets of their own."""
    return anonymous.new_customer()


@pytest.fixture(scope="module")
def outsider(anonymous: Api) -> Api:
    """Another user, who must never see the customer's things."""
    return anonymous.new_customer()


@pytest.fixture
def newcomer(anonymous: Api) -> Api:
    """A user nobody else touches, with the welcome balance."""
    return anonymous.new_customer()


@pytest.fixture(scope="session")
def story(anonymous: Api, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One customer's whole way through the service, told once."""
    return tell_story(anonymous, service, tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="session")
def failed_story(
    anonymous: Api, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> FailedStory:
    """A job of which no file can be processed."""
    return tell_failed_story(anonymous, service, tmp_path_factory.mktemp("failed"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path

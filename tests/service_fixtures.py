"""The running service as a fixture; `tests.service` tells what it offers."""

from collections.abc import Iterator

import pytest

from tests.service import Service, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service, started once for the run; tests use users and datasets of their own."""
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running

"""/readyz says what is missing, and says so for as long as it is missing."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.faults.harness import (
    child_pid,
    eventually,
    faulty_service,
    kill,
    kill_until_it_stays_away,
    stopped,
)
from tests.service import Service

pytestmark = [pytest.mark.service, pytest.mark.fault_long]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with faulty_service(tmp_path_factory.mktemp("victim")) as service:
        yield service


@pytest.fixture(autouse=True)
def ready_before_and_after(victim: Service) -> Iterator[None]:
    victim.wait_until_ready()
    yield
    victim.wait_until_ready()


def reasons(service: Service) -> dict[str, str]:
    """Why the service is not ready; empty when it is."""
    status, body = service.get("/readyz")
    document = json.loads(body)
    if status == 200:
        assert document == {"status": "ready"}
        return {}
    assert (status, document["status"]) == (503, "not ready")
    return dict(document["reasons"])


def test_hanging_redis_is_named(victim):
    with stopped(child_pid(victim, "redis")):
        assert reasons(victim) == {"redis": "Redis does not answer."}


def test_redis_that_is_away_is_named(victim):
    kill_until_it_stays_away(victim, "redis")
    assert reasons(victim)["redis"] == "Redis does not answer."


def test_database_that_is_away_is_named(victim):
    kill_until_it_stays_away(victim, "postgres")
    assert reasons(victim)["database"] == "The database does not answer."


def test_hanging_worker_is_named(victim):
    with stopped(child_pid(victim, "worker-1")):
        found = eventually(lambda: reasons(victim), "the worker is missed")
    assert found == {"workers": "No worker with a loaded model has been heard of lately."}


def test_worker_that_starts_is_not_ready_before_its_model_is_loaded(victim):
    kill(victim, "worker-1")
    found = eventually(lambda: reasons(victim), "the successor says that it has no model yet")
    assert set(found) == {"workers"}


def test_service_that_is_started_again_waits_for_a_model(victim):
    victim.stop()
    victim.start_again()
    log = (victim.data_dir / "logs" / "worker-1.log").read_text()
    assert len(re.findall(r"Loaded [0-9a-f]{12} \(", log)) >= 2

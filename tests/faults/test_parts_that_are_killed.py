"""A part is killed, or everything is stopped, in the middle of a job; the job ends, once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.harness import (
    Customer,
    Observer,
    assert_completed_once,
    assert_new_hints_arrive,
    check_ledger,
    eventually,
    faulty_service,
    kill,
    new_customer,
    tries_of,
    wait_for_successor,
)
from tests.service import Service

pytestmark = [pytest.mark.service, pytest.mark.fault]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all of these: each test leaves it as it found it."""
    with faulty_service(tmp_path_factory.mktemp("victim")) as service:
        yield service


@pytest.fixture
def customer(victim: Service, street_video: Path, frame_count: int) -> Customer:
    return new_customer(victim, street_video, frame_count=frame_count)


@pytest.fixture
def observer(victim: Service, customer: Customer) -> Iterator[Observer]:
    with Observer(victim, customer.token) as watching:
        yield watching


def test_job_of_a_killed_worker_is_finished_by_its_successor(victim, customer, observer):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    killed = kill(victim, "worker-1")
    wait_for_successor(victim, "worker-1", killed)
    assert_completed_once(customer, job_id, observer)
    assert tries_of(victim, job_id) == [(2, 2)]
    assert observer.connections == 1


def test_job_survives_a_kill_of_redis_and_the_next_job_starts(
    victim, customer, observer, short_video
):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    killed = kill(victim, "redis")
    wait_for_successor(victim, "redis", killed)
    assert_completed_once(customer, job_id, observer)
    assert tries_of(victim, job_id) == [(1, 1)]
    assert_new_hints_arrive(victim, short_video)


def test_job_survives_a_kill_of_postgresql_and_requests_meanwhile_get_503(
    victim, customer, observer
):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    killed = kill(victim, "postgres")
    refused = []

    def answers_again() -> bool:
        response = customer.request("GET", "/token")
        if response.status_code != 200:
            refused.append(response)
        return response.status_code == 200

    eventually(answers_again, "the database is back")
    wait_for_successor(victim, "postgres", killed)
    assert refused
    for response in refused:
        assert response.status_code == 503, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == "service_unavailable"
    assert_completed_once(customer, job_id, observer)
    # The worker has waited for the database and computed no frame twice.
    assert tries_of(victim, job_id) == [(1, 1)]


def test_websocket_of_a_killed_web_process_reconnects_and_misses_nothing(
    victim, customer, observer
):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    killed = kill(victim, "web-1")
    # The listening socket is the supervisor's: a connection waits for the next process.
    response = httpx.get(f"{victim.base_url}/livez", timeout=120)
    assert response.status_code == 200
    wait_for_successor(victim, "web-1", killed)
    assert_completed_once(customer, job_id, observer)
    assert observer.connections >= 2
    assert tries_of(victim, job_id) == [(1, 1)]


def test_stopped_service_hands_its_work_back_and_goes_on_when_started_again(
    victim, customer, observer
):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    victim.stop()  # fails when a process is left
    victim.start_again()
    assert_completed_once(customer, job_id, observer)
    # A second attempt, but the first does not count: nothing went wrong.
    assert tries_of(victim, job_id) == [(2, 1)]
    check_ledger(victim)

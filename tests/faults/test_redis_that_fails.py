"""Redis hangs, forgets everything or stays away: work is accepted, and goes on by itself."""

import time
from collections.abc import Iterator

import pytest
import redis

from tests.faults.harness import (
    Customer,
    Observer,
    assert_completed_once,
    assert_new_hints_arrive,
    check_ledger,
    child_pid,
    eventually,
    faulty_service,
    kill,
    kill_until_it_stays_away,
    new_customer,
    stopped,
    tries_of,
    wait_for_successor,
)
from tests.service import Service

pytestmark = [pytest.mark.service, pytest.mark.fault_long]
HANG_SECONDS = 10.0
# A hanging request would take a minute and more; the broker and the hint are given 2 s each.
GENEROUS_SECONDS = 15.0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with faulty_service(tmp_path_factory.mktemp("victim")) as service:
        yield service


@pytest.fixture
def customer(victim: Service, street_video, frame_count) -> Customer:
    return new_customer(victim, street_video, frame_count=frame_count)


@pytest.fixture
def observer(victim: Service, customer: Customer) -> Iterator[Observer]:
    with Observer(victim, customer.token) as watching:
        yield watching


def flush(service: Service) -> None:
    with redis.Redis.from_url(service.up["redis_url"]) as client:
        client.flushall()


def test_job_is_accepted_while_redis_hangs_and_runs_when_it_is_back(victim, customer, observer):
    with stopped(child_pid(victim, "redis")):
        job_id = customer.submit(timeout_seconds=GENEROUS_SECONDS)
        time.sleep(HANG_SECONDS)
    assert_completed_once(customer, job_id, observer)
    assert tries_of(victim, job_id) == [(1, 1)]


def test_websocket_greets_while_redis_hangs_and_tells_of_jobs_by_its_timer(
    victim, customer, short_video
):
    redis_pid = child_pid(victim, "redis")
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    with stopped(redis_pid), Observer(victim, customer.token) as observer:
        customer.wait_for_end(job_id)
        eventually(lambda: observer.kinds(job_id), "the websocket tells of the end")
        assert observer.kinds(job_id) == ["job.completed"]
        assert observer.connections == 1
    # A worker whose job ends while Redis hangs could be left waiting for an acknowledgement.
    assert_new_hints_arrive(victim, short_video)


def test_running_job_does_not_wait_for_a_redis_that_hangs(victim, customer, observer, short_video):
    job_id = customer.submit()
    customer.wait_until_it_runs(job_id)
    with stopped(child_pid(victim, "redis")):
        customer.wait_for_end(job_id)
    assert_completed_once(customer, job_id, observer)
    assert_new_hints_arrive(victim, short_video)


def test_job_is_accepted_while_redis_is_away_and_runs_when_it_is_back(victim, customer, observer):
    kill_until_it_stays_away(victim, "redis")
    job_id = customer.submit(timeout_seconds=GENEROUS_SECONDS)
    assert "redis" not in victim.up["children"]
    assert_completed_once(customer, job_id, observer)


def test_redis_that_forgets_everything_loses_no_job(victim, customer, observer):
    first = customer.submit()
    customer.wait_until_it_runs(first)
    second = customer.submit()
    flush(victim)  # the hint of the second job and the websocket's group are gone
    assert_completed_once_both(customer, first, second, observer)


def assert_completed_once_both(
    customer: Customer, first: int, second: int, observer: Observer
) -> None:
    """Both jobs ended well, the second after the first."""
    assert customer.wait_for_end(first)["state"] == "Completed"
    assert customer.wait_for_end(second)["state"] == "Completed"
    frames = customer.frame_count
    assert customer.balance() == 1000 - 0.5 * frames - 2 * frames
    for job_id in (first, second):
        assert tries_of(customer.service, job_id) == [(1, 1)]


def test_sweeper_that_is_killed_comes_back_and_finds_lost_hints(victim, customer, observer):
    first = customer.submit()
    customer.wait_until_it_runs(first)
    second = customer.submit()
    killed = kill(victim, "sweeper")
    flush(victim)
    wait_for_successor(victim, "sweeper", killed)
    assert_completed_once_both(customer, first, second, observer)
    check_ledger(victim)

"""Costly work in a web process: what waits for its turn never holds all its threads."""

import threading

import pytest

from odproject.core import turns
from odproject.core.errors import DomainError
from odproject.core.turns import turn


class BusyError(DomainError):
    pass


class Slots(threading.BoundedSemaphore):
    """Slots that note how long each taker would wait; 0 stands for one who does not."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.waits: list[float] = []

    def acquire(self, blocking=True, timeout=None):
        self.waits.append(timeout if blocking else 0)
        return super().acquire(blocking=False)


@pytest.fixture
def waiters(monkeypatch):
    """Room for one who waits."""
    room = threading.BoundedSemaphore(1)
    monkeypatch.setattr(turns, "_waiters", room)
    return room


def take(slots):
    with turn(slots, wait_seconds=60, refusal=BusyError()):
        pass


def test_free_slot_is_taken_without_waiting_and_given_back(waiters):
    slots = Slots(1)
    with waiters:  # nobody else may wait; it does not have to
        take(slots)
        take(slots)
    assert slots.waits == [0, 0]


def test_one_who_has_waited_in_vain_is_refused_and_makes_room_for_the_next(waiters):
    slots = Slots(1)
    with slots:
        for _ in range(2):
            with pytest.raises(BusyError):
                take(slots)
    assert slots.waits == [0, 60, 0, 60]
    take(slots)


def test_one_too_many_is_refused_without_waiting(waiters):
    slots = Slots(1)
    with slots, waiters:
        with pytest.raises(BusyError):
            take(slots)
        assert slots.waits == [0]
    take(slots)


def test_a_quarter_of_the_threads_may_wait(settings):
    assert settings.WEB_THREADS == 16
    assert turns._waiters._initial_value == 4


def test_one_who_waits_gets_the_slot_that_becomes_free(waiters):
    slots, done = threading.BoundedSemaphore(1), []

    def work():
        take(slots)
        done.append(True)

    with slots:
        thread = threading.Thread(target=work)
        thread.start()
    thread.join()
    assert done == [True]
    assert waiters.acquire(blocking=False)

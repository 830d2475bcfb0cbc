"""Threads that askers share: who asks for much waits for its like, and nobody for who asks much."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from odproject.fair_threads import FairThreads

PATIENCE_SECONDS = 30


class Work:
    """Tasks that note when they begin, and end when they are let."""

    def __init__(self, count: int) -> None:
        self.threads = FairThreads(count, name="test")
        self.changed = threading.Condition()
        self.begun: list[str] = []
        self.let: Counter[str] = Counter()
        self.futures: dict[str, Future[str]] = {}

    def ask(self, *names: str) -> None:
        """Submit tasks; the first letter of a name is its asker."""
        for name in names:
            self.futures[name] = self.threads.submit(name[0], self._task(name))

    def _task(self, name: str) -> Callable[[], str]:
        def run() -> str:
            with self.changed:
                self.begun.append(name)
                self.changed.notify_all()
                assert self.changed.wait_for(lambda: self.let[name], PATIENCE_SECONDS)
            return name

        return run

    def end(self, name: str) -> None:
        with self.changed:
            self.let[name] += 1
            self.changed.notify_all()
        assert self.futures[name].result(PATIENCE_SECONDS) == name

    def begins(self, *names: str) -> bool:
        """Whether exactly these have begun by now, or soon do, in any order."""
        with self.changed:
            return self.changed.wait_for(
                lambda: sorted(self.begun) == sorted(names), PATIENCE_SECONDS
            )


@pytest.fixture
def work():
    made: list[Work] = []

    def make(count: int) -> Work:
        made.append(Work(count))
        return made[-1]

    yield make
    for one in made:
        with one.changed:
            one.let.update(one.futures.keys())
            one.changed.notify_all()


def test_last_free_thread_is_kept_for_somebody_who_has_none(work):
    pool = work(3)
    pool.ask("a1", "a2", "a3", "a4")
    assert pool.begins("a1", "a2")
    pool.ask("b1")
    assert pool.begins("a1", "a2", "b1")


def test_one_thread_serves_whoever_comes(work):
    pool = work(1)
    pool.ask("a1", "a2")
    assert pool.begins("a1")
    pool.end("a1")
    assert pool.begins("a1", "a2")


def test_askers_take_turns_however_many_tasks_one_brought(work):
    pool = work(1)
    pool.ask("a1", "a2", "a3", "b1", "b2", "c1")
    order = ["a1", "b1", "c1", "a2", "b2", "a3"]
    for count, name in enumerate(order, start=1):
        assert pool.begins(*order[:count])
        pool.end(name)
    assert pool.begun == order


def test_who_has_fewest_running_comes_first(work):
    pool = work(5)
    pool.ask("a1", "a2", "a3", "b1")
    pool.ask("a4", "b2")
    assert pool.begins("a1", "a2", "a3", "b1")
    pool.end("a1")
    assert pool.begins("a1", "a2", "a3", "b1", "b2")


def test_task_that_is_cancelled_while_it_waits_never_runs(work):
    pool = work(1)
    pool.ask("a1", "a2", "a3")
    assert pool.begins("a1")
    assert pool.futures["a2"].cancel()
    assert not pool.futures["a1"].cancel()
    pool.end("a1")
    assert pool.begins("a1", "a3")


def test_failure_reaches_who_asked_and_frees_the_thread(work):
    pool = work(1)

    def fail() -> None:
        raise ValueError("a task that fails")

    failed = pool.threads.submit("a", fail)
    with pytest.raises(ValueError, match="a task that fails"):
        failed.result(PATIENCE_SECONDS)
    pool.ask("a1")
    assert pool.begins("a1")

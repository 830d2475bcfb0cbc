"""A pool of threads that askers share: whoever asks for much does not keep the others waiting."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Task:
    future: "Future[Any]"
    work: Callable[[], Any]


class FairThreads:
    """`count` threads, for which askers take turns.

    The next task is of the asker who has the fewest running, and among those of the one who came
    first, or whose last task ended longest ago. The last free thread goes only to somebody who
    has none: however many tasks one asker brings, the next one who comes begins at once.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = count
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Task]] = {}
        self._running: Counter[str] = Counter()

    def submit(self, asker: str, work: Callable[[], Any]) -> "Future[Any]":
        """Run `work` when it is the asker's turn; a future that is cancelled before never runs."""
        task = _Task(Future(), work)
        with self._lock:
            self._waiting.setdefault(asker, deque()).append(task)
            self._start_what_may()
        return task.future

    def _start_what_may(self) -> None:
        while self._free and (asker := self._next_asker()) is not None:
            task = self._waiting[asker].popleft()
            if not self._waiting[asker]:
                del self._waiting[asker]
            # From here on the future can be cancelled no more.
            if not task.future.set_running_or_notify_cancel():
                continue
            self._free -= 1
            self._running[asker] += 1
            self._pool.submit(self._run, asker, task)

    def _next_asker(self) -> str | None:
        asker = min(self._waiting, key=lambda one: self._running[one], default=None)
        if asker is None or (self._free == 1 and self._running[asker]):
            return None
        return asker

    def _run(self, asker: str, task: _Task) -> None:
        try:
            result = task.work()
        except BaseException as error:
            self._end(asker)
            task.future.set_exception(error)
        else:
            self._end(asker)
            task.future.set_result(result)

    def _end(self, asker: str) -> None:
        with self._lock:
            self._free += 1
            self._running -= Counter({asker: 1})
            if asker in self._waiting:
                self._waiting[asker] = self._waiting.pop(asker)
            self._start_what_may()

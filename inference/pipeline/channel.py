"""A bounded queue between two threads that either side can close without the other hanging."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ChannelClosedError(Exception):
    """The other side went away: what is put now would never be taken."""


class Channel(Generic[Item]):
    """Carries items in order from one thread to another, at most `capacity` at a time.

    With `weigh` what waits may also weigh at most `limit` together; a single item may be heavier.

    The producer ends it with `finish`, after the items that wait, or with `stop`, at once. The
    consumer ends it with `abandon`, which makes the producer's `put` raise.
    """

    def __init__(
        self, capacity: int, weigh: Callable[[Item], int] = lambda _: 0, limit: int = 0
    ) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._limit = limit
        self._weight = 0
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._abandoned = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> None:
        """Waits for room. Raises ChannelClosedError when the consumer has abandoned."""
        weight = self._weigh(item)
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._has_room(weight))
            if self._abandoned:
                raise ChannelClosedError
            self._items.append(item)
            self._weight += weight
            self._changed.notify_all()

    def _has_room(self, weight: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._capacity and self._weight + weight <= self._limit

    def finish(self, error: BaseException | None = None) -> None:
        """No more items will come; `error` is raised in the consumer after the last one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def stop(self, error: BaseException) -> None:
        """The producer gives up: what waits is dropped and `error` raised in the consumer."""
        with self._changed:
            self._items.clear()
            self._finished, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """The consumer takes nothing any more."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        """Takes items until `finish` or `abandon`; raises the producer's error, if any."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: bool(self._items) or self._finished or self._abandoned
                )
                if not self._items:
                    if self._error is not None and not self._abandoned:
                        raise self._error
                    return
                item = self._items.popleft()
                self._weight -= self._weigh(item)
                self._changed.notify_all()
            yield item
            # The consumer's last reference to a frame must not live on while it waits.
            del item

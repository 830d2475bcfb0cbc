"""How a worker keeps a unit while it works on it, and what it does while the database is away."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from django.conf import settings
from django.db import (
    DatabaseError,
    InterfaceError,
    close_old_connections,
    connection,
)

from inference import services
from inference.services import Claim, LeaseLostError
from odproject.core.sqlstates import is_away

logger = logging.getLogger(__name__)
DATABASE_RETRY_SECONDS = 0.5

Outcome = TypeVar("Outcome")


def while_database_is_away(work: Callable[[], Outcome]) -> Outcome:
    """Do `work`, again and again while the database does not answer, for as long as a lease.

    A database that restarts costs seconds; what a worker has computed meanwhile would cost more
    to compute again. `work` is one transaction, which either happened or did not, and may happen
    twice. A database without room or that takes no writes is waited for as well. Raises its error
    when the lease would be over.
    """
    deadline = time.monotonic() + settings.UNIT_LEASE_SECONDS
    while True:
        try:
            return work()
        except (DatabaseError, InterfaceError) as error:
            if not is_away(error):
                raise
            close_old_connections()
            if time.monotonic() > deadline:
                raise
            logger.warning("The worker waits for the database: %s", error)
            time.sleep(DATABASE_RETRY_SECONDS)


class LeaseKeeper(threading.Thread):
    """Renews the lease of the unit that this process runs, while there is progress.

    A picture of 200 megapixels on a slow machine, or the end of a long video, can take longer
    than a lease without a batch to store. A process that is killed or stopped renews nothing, and
    neither does one whose work hangs: after too long without progress the lease runs out, and
    `on_hang` is called.
    """

    def __init__(self, *, claim: Claim, on_hang: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="lease", daemon=True)
        self._claim = claim
        self._on_hang = on_hang
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._progress_at = time.monotonic()

    def note_progress(self) -> None:
        """The work goes on; raises LeaseLostError once the unit is known to be another's.

        Any thread may call it: the pipeline does from the one that decodes, too. A step that stores
        nothing for long, as drawing a video, would not notice otherwise that its job was aborted.
        """
        if self._lost.is_set():
            raise LeaseLostError(f"Work unit {self._claim.unit_id} was taken away.")
        self._progress_at = time.monotonic()

    def run(self) -> None:
        """Renew until the work ends, hangs, or the unit is somebody else's."""
        while not self._ended.wait(settings.UNIT_LEASE_SECONDS / 4):
            if time.monotonic() - self._progress_at > settings.UNIT_SILENT_SECONDS:
                logger.error("Work unit %s makes no progress", self._claim.unit_id)
                self._on_hang()
                break
            try:
                if not services.renew_lease(claim=self._claim):
                    self._lost.set()
                    break
            except (DatabaseError, InterfaceError) as error:
                logger.warning("A lease was not renewed: %s", error)
                close_old_connections()
        connection.close()

    def __enter__(self) -> "LeaseKeeper":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

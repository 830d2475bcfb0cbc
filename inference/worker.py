"""A worker's side of a job: claim a work unit, run the pipeline over it, keep what it finds.

Nothing here holds a transaction open while the network computes, and memory does not grow with
the length of a video: every batch goes to the database as it comes.
"""

import contextlib
import logging
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
)

from datasets.media.errors import MediaError
from inference import services
from inference.leases import LeaseKeeper, while_database_is_away
from inference.models import Job
from inference.networks import Detectors
from inference.pipeline.detector import Detector
from inference.pipeline.errors import DrawingError, WeightsError, is_device_fault
from inference.pipeline.options import OptionsError
from inference.services import Claim, FileFault, LeaseLostError
from inference.unit_work import WorkerStoppingError, process_unit
from odproject.core.files import keep_reserve, keep_reserve_of_storage
from odproject.core.room import ROOM_CHECK_BYTES
from odproject.core.sqlstates import is_refused_by_database

logger = logging.getLogger(__name__)
MOST_FAILURES_IN_A_ROW = 5
# A broken device is not the unit's fault, so it counts as no try; but what a unit holds may be what
# breaks it, every time. So only the first few attempts are forgiven, whichever workers made them:
# then it counts, an image of a batch alone, and the unit ends after three more.
FORGIVEN_ATTEMPTS = 5
# The same for a disk that is full or fails, or what else the system refuses. Somebody has to make
# room first, so the unit is tried again later and later, for about an hour before it counts.
FORGIVEN_REFUSALS = 10
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(minutes=10)
MOST_RACES = 20  # lost to other workers, until the next hint


@dataclass
class ProcessHealth:
    """What the units that a process has run say about the process itself."""

    failures_in_a_row: int = 0
    is_device_broken: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether another process should take the place of this one.

        A single file that breaks off is the file's fault, several in a row hardly are.
        """
        return self.is_device_broken or self.failures_in_a_row >= MOST_FAILURES_IN_A_ROW


class Heartbeat(threading.Thread):
    """Writes every few seconds that this worker is alive; a database that is away is waited for."""

    def __init__(self, *, worker_name: str, detectors: Detectors) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._worker_name = worker_name
        self._detectors = detectors
        self._stopped = threading.Event()
        self._due = threading.Event()

    def run(self) -> None:
        """Beat until stopped; the last beat says that nothing is loaded any more."""
        while not self._stopped.is_set():
            self._beat(self._detectors.loaded_weights)
            self._due.wait(settings.WORKER_HEARTBEAT_SECONDS)
            self._due.clear()
        self._beat([])
        connection.close()

    def _beat(self, loaded_weights: list[str]) -> None:
        try:
            services.record_heartbeat(
                worker_name=self._worker_name,
                loaded_weights=loaded_weights,
                device=self._detectors.device,
                precisions=self._detectors.precisions,
            )
        except (DatabaseError, InterfaceError) as error:
            logger.warning("No heartbeat, the database does not answer: %s", error)
            close_old_connections()

    def beat_now(self) -> None:
        """Tell at once what has changed."""
        self._due.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._due.set()


def run_next_unit(run: Callable[[int], bool]) -> bool:
    """Run the waiting unit whose turn it is; returns whether there was one.

    `run` is `run_unit` of a unit's number: False when another worker was quicker.
    """
    for _ in range(MOST_RACES):
        unit_id = while_database_is_away(services.next_unit)
        if unit_id is None:
            break
        if run(unit_id):
            return True
    return False


def run_unit(
    *,
    unit_id: int,
    worker_name: str,
    detector_of: Callable[[Job], Detector],
    should_stop: Callable[[], bool] = lambda: False,
    on_hang: Callable[[], None] = lambda: None,
    health: ProcessHealth | None = None,
) -> bool:
    """Run one work unit to its end; returns whether it was there to be taken.

    A file that cannot be processed fails its unit alone. Whatever else goes wrong puts the unit
    back, to be tried again a bounded number of times, and is noted in `health`. A database that is
    away is waited for. `on_hang` is called from another thread when there is no progress for too
    long.
    """
    health = health or ProcessHealth()
    claim = while_database_is_away(
        lambda: services.claim_unit(unit_id=unit_id, worker_name=worker_name)
    )
    if claim is None:
        return False
    try:
        _keep_reserves()
        with LeaseKeeper(claim=claim, on_hang=on_hang) as lease:
            process_unit(claim=claim, detector_of=detector_of, should_stop=should_stop, lease=lease)
        health.failures_in_a_row = 0
    except LeaseLostError as error:
        logger.info("%s", error)
    except WorkerStoppingError:
        logger.info("Handing unit %s back", unit_id)
        _hand_back(claim, counts_as_try=False)
    except Exception as error:
        fault = None if is_device_fault(error) else _fault_of_file(error)
        if fault is None:
            logger.exception("Work unit %s broke off in attempt %s", unit_id, claim.attempt)
            _hand_back(
                claim,
                counts_as_try=_counts_as_try(error, claim, health),
                pause=_pause_after(claim) if _is_refused_by_system(error) else None,
            )
            return True
        with contextlib.suppress(LeaseLostError):
            while_database_is_away(lambda: services.fail_unit(claim=claim, fault=fault))
    return True


def _keep_reserves() -> None:
    """Raise OSError where what a unit writes would take room that the database needs."""
    keep_reserve(ROOM_CHECK_BYTES)
    keep_reserve_of_storage(ROOM_CHECK_BYTES)


def _fault_of_file(error: Exception) -> FileFault | None:
    """What is told to the owner of a file that is at fault; None for any other failure."""
    if isinstance(error, MediaError | DrawingError | WeightsError):
        return FileFault(error.code, error.detail)
    if isinstance(error, OptionsError):
        # The classes of the model were not known yet when the job was submitted.
        return FileFault("invalid_options", str(error))
    return None


def _counts_as_try(error: Exception, claim: Claim, health: ProcessHealth) -> bool:
    """Whether a failure may be the unit's fault; notes what it says about the process."""
    if isinstance(error, OperationalError | InterfaceError) and not connection.is_usable():
        return False  # the database was away; else it has refused this very statement
    if is_device_fault(error):
        health.is_device_broken = True
        return claim.attempt > FORGIVEN_ATTEMPTS
    if _is_refused_by_system(error):
        return claim.attempt > FORGIVEN_REFUSALS
    health.failures_in_a_row += 1
    return True


def _is_refused_by_system(error: Exception) -> bool:
    """Whether a disk is full or fails, or the like: what files are at fault for is no OSError.

    It may be the database's disk.
    """
    return isinstance(error, OSError) or is_refused_by_database(error)


def _pause_after(claim: Claim) -> timedelta:
    doublings = min(claim.attempt - 1, FORGIVEN_REFUSALS)
    return min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE)


def _hand_back(claim: Claim, *, counts_as_try: bool, pause: timedelta | None = None) -> None:
    # If the database stays away, the lease runs out and the sweeper puts the unit back.
    with contextlib.suppress(DatabaseError, InterfaceError):
        while_database_is_away(
            lambda: services.hand_back_unit(claim=claim, counts_as_try=counts_as_try, pause=pause)
        )


def uses_too_much_memory() -> bool:
    """Whether this process has ever needed more memory than a worker may keep."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes > settings.WORKER_MAX_MEMORY_BYTES

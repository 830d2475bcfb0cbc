"""The Celery side of a worker: one process, one unit at a time, the network loaded once.

Celery runs with the solo pool: no fork, so CUDA and the loaded networks live in the process that
runs the tasks, and a signal to the process reaches the running task (docs/adr/0002).
"""

import logging
import os
import socket
import sys
from typing import Any

from celery import shared_task, signals
from celery.worker import state as worker_state
from django.db import close_old_connections

from inference import registry, services, try_outs
from inference.leases import while_database_is_away
from inference.networks import Detectors
from inference.queue import RUN_UNIT, TEST_MODEL
from inference.worker import (
    Heartbeat,
    ProcessHealth,
    run_next_unit,
    run_unit,
    uses_too_much_memory,
)
from odproject.core.process import die_with_parent

logger = logging.getLogger(__name__)

detectors = Detectors()
health = ProcessHealth()


def worker_name() -> str:
    """The name under which this process leases units; one process at a time has it."""
    return os.environ.get("OD_WORKER_NAME") or f"{socket.gethostname()}:{os.getpid()}"


def is_stopping() -> bool:
    """Whether the worker has been told to stop."""
    return worker_state.should_stop is not None or worker_state.should_terminate is not None


def end_at_once() -> None:
    """End a worker that hangs: nothing else would let it take work again."""
    logger.critical("This worker hangs and ends; another takes its place")
    os._exit(os.EX_SOFTWARE)


@signals.worker_init.connect
def start_worker(**_: Any) -> None:
    """Load a model, take back what an earlier life of this worker left, and start beating.

    A worker that cannot do so exits, to be started again: Celery would only log what is raised
    here, and go on with a worker that nobody ever hears of.
    """
    die_with_parent()
    heartbeat = Heartbeat(worker_name=worker_name(), detectors=detectors)
    signals.worker_shutting_down.connect(lambda **_: heartbeat.stop(), weak=False)
    try:
        # The first beat says that nothing is loaded, whatever an earlier life has said last.
        heartbeat.start()
        detectors.check_device()
        while_database_is_away(lambda: services.reclaim_units(worker_name=worker_name()))
        if first := while_database_is_away(registry.first_active_weights):
            detectors.load(first)
            heartbeat.beat_now()
    except Exception:
        logger.exception("The worker cannot start")
        sys.exit(os.EX_SOFTWARE)


@shared_task(name=RUN_UNIT)
def run_unit_task(unit_id: int) -> None:
    """Run the work unit whose turn it is: that some wait is all that the hint of one says.

    A model version that waits to be tried out comes first: an administrator looks on, and it takes
    seconds. A worker that stops runs nothing any more.
    """
    if is_stopping():
        return  # the hint is repeated, for another worker
    close_old_connections()
    if version_id := while_database_is_away(try_outs.next_test):
        try_outs.run_test(version_id=version_id)
    run_next_unit(
        lambda waiting_id: run_unit(
            unit_id=waiting_id,
            worker_name=worker_name(),
            detector_of=detectors.for_job,
            should_stop=is_stopping,
            on_hang=end_at_once,
            health=health,
        )
    )
    if health.is_lost:
        # Its supervisor starts another one, later and later if that lives for a short time only.
        logger.critical("This worker can do no work any more and ends; another takes its place")
        worker_state.should_stop = os.EX_SOFTWARE
        return
    if uses_too_much_memory():
        logger.warning("This worker has grown too large and ends; another takes its place")
        worker_state.should_stop = os.EX_OK


@shared_task(name=TEST_MODEL)
def test_model_task(version_id: int) -> None:
    """Try a model version out, if it still waits for that."""
    close_old_connections()
    try_outs.run_test(version_id=version_id)

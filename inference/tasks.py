"""The Celery side of a worker: one process, one unit at a time, the network loaded once.

Celery runs with the solo pool: no fork, so CUDA and the loaded networks live in the process that
runs the tasks, and a signal to the process reaches the running task (docs/adr/0002).
"""

import logging
import os
import socket
from typing import Any

from celery import shared_task, signals
from celery.worker import state as worker_state
from django.db import close_old_connections

from inference import services
from inference.queue import RUN_UNIT
from inference.worker import Detectors, Heartbeat, run_unit, uses_too_much_memory
from odproject.core.process import die_with_parent

logger = logging.getLogger(__name__)
PRELOADED_VERSION = "YOLO8s_FSR"

detectors = Detectors()


def worker_name() -> str:
    """The name under which this process leases units; one process at a time has it."""
    return os.environ.get("OD_WORKER_NAME") or f"{socket.gethostname()}:{os.getpid()}"


def is_stopping() -> bool:
    """Whether the worker has been told to stop."""
    return worker_state.should_stop is not None or worker_state.should_terminate is not None


@signals.worker_init.connect
def start_worker(**_: Any) -> None:
    """Load a model, take back what an earlier life of this worker left, and start beating."""
    die_with_parent()
    heartbeat = Heartbeat(worker_name=worker_name(), detectors=detectors)
    signals.worker_shutting_down.connect(lambda **_: heartbeat.stop(), weak=False)
    services.reclaim_units(worker_name=worker_name())
    detectors.get(PRELOADED_VERSION)
    heartbeat.start()


@shared_task(name=RUN_UNIT)
def run_unit_task(unit_id: int) -> None:
    """Run a work unit, if it still waits."""
    close_old_connections()
    run_unit(
        unit_id=unit_id,
        worker_name=worker_name(),
        detector_of=detectors.get,
        should_stop=is_stopping,
    )
    if uses_too_much_memory():
        logger.warning("This worker has grown too large and ends; another takes its place")
        worker_state.should_stop = os.EX_OK

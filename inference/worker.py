"""A worker's side of a job: claim a work unit, run the pipeline over it, keep what it finds.

Nothing here holds a transaction open while the network computes, and memory does not grow with
the length of a video: every batch goes to the database as it comes.
"""

import contextlib
import logging
import resource
import threading
from collections.abc import Callable
from pathlib import Path

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
from inference.pipeline.detector import Detector, YoloDetector
from inference.pipeline.errors import DrawingError
from inference.pipeline.network import Network, fast_precisions, load_network
from inference.pipeline.options import DetectionOptions, OptionsError, Precision
from inference.services import Claim, FileFault, LeaseLostError
from inference.unit_work import WorkerStoppingError, process_unit

logger = logging.getLogger(__name__)


class Detectors:
    """The networks that this process has loaded, by model version and precision; on first use.

    Jobs with different options share them.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[str, str], Network] = {}

    def for_job(self, job: Job) -> YoloDetector:
        """A detector as the job wants it; raises whatever loading its weights raises.

        Raises OptionsError for classes that the model does not know.
        """
        options = DetectionOptions.parse(job.options)
        network = self.load(job.model_version.version, precision=options.precision)
        return YoloDetector(network, options)

    def load(self, version: str, *, precision: Precision = "auto") -> Network:
        """The network of a model version; raises whatever loading its weights raises."""
        network = self._networks.get((version, precision))
        if network is None:
            network = load_network(
                Path(settings.WEIGHTS[version]),
                precision=precision,
                threads=settings.TORCH_THREADS or None,
            )
            network.tune((settings.NETWORK_IMAGE_SIZE, settings.NETWORK_IMAGE_SIZE))
            about = (version, network.device, network.runtime, network.precision)
            logger.info("Loaded %s (%s, %s, %s)", *about)
            self._networks[version, precision] = network
        return network

    @property
    def loaded_versions(self) -> list[str]:
        """The model versions in memory."""
        return sorted({version for version, _ in self._networks})

    @property
    def device(self) -> str:
        """Where the networks run, empty while none is loaded."""
        return next((network.device for network in self._networks.values()), "")

    @property
    def precisions(self) -> tuple[str, ...]:
        """In which the networks run at full speed here."""
        return fast_precisions()


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
            self._beat(self._detectors.loaded_versions)
            self._due.wait(settings.WORKER_HEARTBEAT_SECONDS)
            self._due.clear()
        self._beat([])
        connection.close()

    def _beat(self, loaded_versions: list[str]) -> None:
        try:
            services.record_heartbeat(
                worker_name=self._worker_name,
                loaded_versions=loaded_versions,
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


def run_unit(
    *,
    unit_id: int,
    worker_name: str,
    detector_of: Callable[[Job], Detector],
    should_stop: Callable[[], bool] = lambda: False,
    on_hang: Callable[[], None] = lambda: None,
) -> bool:
    """Run one work unit to its end; returns whether it was there to be taken.

    A file that cannot be processed fails its unit alone. Whatever else goes wrong puts the unit
    back, to be tried again a bounded number of times. A database that is away is waited for.
    `on_hang` is called from another thread when there is no progress for too long.
    """
    claim = while_database_is_away(
        lambda: services.claim_unit(unit_id=unit_id, worker_name=worker_name)
    )
    if claim is None:
        return False
    try:
        with LeaseKeeper(claim=claim, on_hang=on_hang) as lease:
            process_unit(claim=claim, detector_of=detector_of, should_stop=should_stop, lease=lease)
    except LeaseLostError as error:
        logger.info("%s", error)
    except WorkerStoppingError:
        logger.info("Handing unit %s back", unit_id)
        _hand_back(claim, counts_as_try=False)
    except (MediaError, DrawingError) as error:
        fault = FileFault(error.code, error.detail)
        with contextlib.suppress(LeaseLostError):
            while_database_is_away(lambda: services.fail_unit(claim=claim, fault=fault))
    except OptionsError as error:
        # The classes of the model were not known yet when the job was submitted.
        unfit = FileFault("invalid_options", str(error))
        with contextlib.suppress(LeaseLostError):
            while_database_is_away(lambda: services.fail_unit(claim=claim, fault=unfit))
    except Exception as error:
        logger.exception("Work unit %s broke off in attempt %s", unit_id, claim.attempt)
        # That the database was away is not the file's fault.
        _hand_back(claim, counts_as_try=not isinstance(error, OperationalError | InterfaceError))
    return True


def _hand_back(claim: Claim, *, counts_as_try: bool) -> None:
    # If the database stays away, the lease runs out and the sweeper puts the unit back.
    with contextlib.suppress(DatabaseError, InterfaceError):
        while_database_is_away(
            lambda: services.hand_back_unit(claim=claim, counts_as_try=counts_as_try)
        )


def uses_too_much_memory() -> bool:
    """Whether this process has ever needed more memory than a worker may keep."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes > settings.WORKER_MAX_MEMORY_BYTES

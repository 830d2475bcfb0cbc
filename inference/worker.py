"""A worker's side of a job: claim a work unit, run the pipeline over its file, keep what it finds.

Nothing here holds a transaction open while the network computes, and memory does not grow with
the length of a video: every batch goes to the database as it comes.
"""

import contextlib
import logging
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
)

from datasets.media.errors import MediaError
from datasets.models import MediaFile
from datasets.uploading import media_limits
from inference import services
from inference.models import FrameResult, WorkUnit
from inference.pipeline.detector import Detector, YoloDetector
from inference.pipeline.errors import DrawingError
from inference.pipeline.network import fast_precisions, load_detector
from inference.pipeline.options import DetectionOptions
from inference.pipeline.run import ImageTask, process_images, process_video
from inference.pipeline.types import FrameDetections
from inference.services import Claim, LeaseLostError

logger = logging.getLogger(__name__)

# Formats whose annotated picture keeps the format; the others become PNG.
DRAWABLE_FORMATS = {"jpeg": "jpg", "mpo": "jpg", "png": "png", "webp": "webp", "bmp": "bmp"}
DATABASE_RETRY_SECONDS = 0.5

Outcome = TypeVar("Outcome")


class WorkerStoppingError(Exception):
    """The worker has been told to stop: hand the unit back."""


class Detectors:
    """The networks that this process has loaded, by model version; loaded on first use."""

    def __init__(self) -> None:
        self._loaded: dict[str, YoloDetector] = {}

    def get(self, version: str) -> YoloDetector:
        """The detector of a model version; raises whatever loading its weights raises."""
        if version not in self._loaded:
            weights = Path(settings.WEIGHTS[version])
            detector = load_detector(
                weights,
                options=DetectionOptions(
                    confidence_floor=settings.CONFIDENCE_FLOOR,
                    max_detections=settings.MAX_DETECTIONS_PER_FRAME,
                    image_size=settings.NETWORK_IMAGE_SIZE,
                ),
                threads=settings.TORCH_THREADS or None,
            )
            detector.warm_up()
            logger.info(
                "Loaded %s (%s, %s, %s)",
                version,
                detector.device,
                detector.network.runtime,
                detector.precision,
            )
            self._loaded[version] = detector
        return self._loaded[version]

    @property
    def loaded_versions(self) -> list[str]:
        """The model versions in memory."""
        return sorted(self._loaded)

    @property
    def device(self) -> str:
        """Where the networks run, empty while none is loaded."""
        return next((str(one.device) for one in self._loaded.values()), "")

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


def while_database_is_away(work: Callable[[], Outcome]) -> Outcome:
    """Do `work`, again and again while the database does not answer, for as long as a lease.

    A database that restarts costs seconds; what a worker has computed meanwhile would cost more
    to compute again. `work` is one transaction, which either happened or did not, and may happen
    twice. Raises OperationalError or InterfaceError when the lease would be over.
    """
    deadline = time.monotonic() + settings.UNIT_LEASE_SECONDS
    while True:
        try:
            return work()
        except (OperationalError, InterfaceError) as error:
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
        self._progress_at = time.monotonic()

    def note_progress(self) -> None:
        """The work goes on."""
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


def run_unit(
    *,
    unit_id: int,
    worker_name: str,
    detector_of: Callable[[str], Detector],
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
            _process(claim, detector_of, should_stop, lease)
    except LeaseLostError as error:
        logger.info("%s", error)
    except WorkerStoppingError:
        logger.info("Handing unit %s back", unit_id)
        _hand_back(claim, counts_as_try=False)
    except (MediaError, DrawingError) as error:
        code, detail = error.code, error.detail
        with contextlib.suppress(LeaseLostError):
            while_database_is_away(
                lambda: services.fail_unit(claim=claim, error_code=code, error=detail)
            )
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


def _process(
    claim: Claim,
    detector_of: Callable[[str], Detector],
    should_stop: Callable[[], bool],
    lease: LeaseKeeper,
) -> None:
    """Detect, store and draw one file, and end the unit."""
    unit = WorkUnit.objects.select_related("media_file", "job__model_version").get(pk=claim.unit_id)
    media_file = unit.media_file
    detector = detector_of(unit.job.model_version.version)
    services.record_model(
        claim=claim,
        class_names=detector.class_names,
        weights_sha256=getattr(detector, "sha256", ""),
    )
    sink = ResultSink(
        claim=claim, unit=unit, detector=detector, should_stop=should_stop, lease=lease
    )
    with tempfile.TemporaryDirectory(prefix="od-unit-") as folder, local_copy(media_file) as source:
        annotated = Path(folder) / f"annotated.{annotated_extension(media_file)}"
        if media_file.media_type == MediaFile.MediaType.IMAGE:
            tasks = [ImageTask(source, annotated)]
            (outcome,) = process_images(tasks, detector, limits=media_limits())
            if outcome.error is not None:
                raise outcome.error
            sink([FrameDetections(0, 0.0, outcome.detections)])
        else:
            process_video(
                source,
                detector,
                annotated=annotated,
                on_frames=sink,
                max_frames=unit.frame_count,
                limits=media_limits(),
            )
        suffix = annotated.suffix
        with annotated.open("rb") as content:
            stored = default_storage.save(_result_name(claim, claim.attempt, suffix), File(content))
    try:
        while_database_is_away(lambda: services.complete_unit(claim=claim, annotated_name=stored))
    except BaseException:
        _discard_unless_kept(claim, stored)
        raise
    for attempt in range(1, claim.attempt):
        # A worker that was killed at the wrong moment has left its file behind.
        with contextlib.suppress(OSError):
            default_storage.delete(_result_name(claim, attempt, suffix))


def _result_name(claim: Claim, attempt: int, suffix: str) -> str:
    return f"results/{claim.job_id}/{claim.unit_id}-{attempt}{suffix}"


def _discard_unless_kept(claim: Claim, stored: str) -> None:
    """Remove an annotated file that belongs to no unit.

    A commit whose answer got lost looks like a failure, so the database is asked; while it
    cannot be, a file too many is better than one too few.
    """
    with contextlib.suppress(DatabaseError, InterfaceError):
        if not WorkUnit.objects.filter(pk=claim.unit_id, annotated=stored).exists():
            default_storage.delete(stored)


class ResultSink:
    """Takes each batch of detections: stops if told to, stores it, and reports progress."""

    def __init__(
        self,
        *,
        claim: Claim,
        unit: WorkUnit,
        detector: Detector,
        should_stop: Callable[[], bool],
        lease: LeaseKeeper,
    ) -> None:
        self._lease = lease
        self._claim = claim
        self._unit = unit
        self._class_names = detector.class_names
        self._should_stop = should_stop
        self._frames_done = 0
        self._published_at = 0.0

    def __call__(self, frames: Sequence[FrameDetections]) -> None:
        """Store a batch; raises WorkerStoppingError or LeaseLostError to end the unit."""
        self._lease.note_progress()
        if self._should_stop():
            raise WorkerStoppingError
        self._frames_done += len(frames)
        results = [self._frame_result(frame) for frame in frames]
        while_database_is_away(
            lambda: services.store_frames(
                claim=self._claim, frames=results, frames_done=self._frames_done
            )
        )
        now = time.monotonic()
        if now - self._published_at >= settings.PROGRESS_INTERVAL_SECONDS:
            self._published_at = now
            while_database_is_away(lambda: services.publish_progress(claim=self._claim))

    def _frame_result(self, frame: FrameDetections) -> FrameResult:
        found = frame.detections
        displayed = found.above(settings.DISPLAY_CONFIDENCE)
        class_ids, counts = np.unique(displayed.class_ids, return_counts=True)
        return FrameResult(
            job_id=self._claim.job_id,
            media_file_id=self._unit.media_file_id,
            frame_index=frame.frame_index,
            time_seconds=frame.time_seconds,
            class_ids=found.class_ids.astype("<i2").tobytes(),
            confidences=found.confidences.astype("<f4").tobytes(),
            boxes_xyxy=found.boxes_xyxy.astype("<f4").tobytes(),
            class_counts={
                self._class_names[class_id]: int(count)
                for class_id, count in zip(class_ids, counts, strict=True)
            },
        )


def annotated_extension(media_file: MediaFile) -> str:
    """The extension of a file's annotated copy: videos are MP4, images keep common formats."""
    if media_file.media_type == MediaFile.MediaType.VIDEO:
        return "mp4"
    return DRAWABLE_FORMATS.get(media_file.format, "png")


@contextlib.contextmanager
def local_copy(media_file: MediaFile) -> Iterator[Path]:
    """The media file as a local file: itself where storage is a folder, else a temporary copy."""
    try:
        path = Path(media_file.content.path)
    except NotImplementedError:
        path = None
    if path is not None:
        yield path
    else:
        with tempfile.NamedTemporaryFile(prefix="od-media-") as target:
            with media_file.content.open("rb") as source:
                shutil.copyfileobj(source, target)
            target.flush()
            yield Path(target.name)


def uses_too_much_memory() -> bool:
    """Whether this process has ever needed more memory than a worker may keep."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes > settings.WORKER_MAX_MEMORY_BYTES

"""What a worker does with a unit that it has claimed: images, a range of frames, or a finish.

What it finds goes to the database batch by batch, what it draws into storage under a name that
bears the attempt, and the unit ends in one transaction that names the stored files.
"""

import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import DatabaseError, InterfaceError

from datasets.media.errors import MediaError
from datasets.media.seeking import SeekPlan
from datasets.models import MediaFile
from datasets.uploading import media_limits
from inference import services
from inference.leases import LeaseKeeper, while_database_is_away
from inference.models import FrameResult, Job, JobFile, UnitFile, WorkUnit
from inference.pipeline.detector import Detector
from inference.pipeline.join import join_segments
from inference.pipeline.options import DISPLAY_CONFIDENCE, DetectionOptions
from inference.pipeline.run import ImageTask, draw_video, process_images, process_video
from inference.pipeline.types import FrameDetections
from inference.selectors import frame_results, stored_detections
from inference.services import Claim, FileFault
from inference.tracking import track_video
from odproject.core.files import local_copy

logger = logging.getLogger(__name__)

# Formats whose annotated picture keeps the format; the others become PNG.
DRAWABLE_FORMATS = {"jpeg": "jpg", "mpo": "jpg", "png": "png", "webp": "webp", "bmp": "bmp"}


class WorkerStoppingError(Exception):
    """The worker has been told to stop: hand the unit back."""


@dataclass(frozen=True)
class Work:
    """A unit under way: its claim, what it looks at, and who watches over it."""

    claim: Claim
    unit: WorkUnit
    parts: Sequence[UnitFile]
    should_stop: Callable[[], bool]
    lease: LeaseKeeper

    @property
    def options(self) -> DetectionOptions:
        """Of the job."""
        return DetectionOptions.parse(self.unit.job.options)

    def note_progress(self) -> None:
        """Tell that the work goes on; raises WorkerStoppingError or LeaseLostError else.

        Any thread may call it, so it asks no database.
        """
        self.lease.note_progress()
        if self.should_stop():
            raise WorkerStoppingError


def process_unit(
    *,
    claim: Claim,
    detector_of: Callable[[Job], Detector],
    should_stop: Callable[[], bool],
    lease: LeaseKeeper,
) -> None:
    """Do a claimed unit and end it.

    Raises MediaError or DrawingError when the video of the unit is at fault; of a batch of images
    each fails alone. Raises OptionsError for classes that the model does not know, and
    WorkerStoppingError and LeaseLostError.
    """
    unit = WorkUnit.objects.select_related("job").get(pk=claim.unit_id)
    parts = list(UnitFile.objects.filter(unit=unit).select_related("job_file__media_file"))
    work = Work(claim, unit, parts, should_stop, lease)
    if unit.kind == WorkUnit.Kind.FINISH:
        _finish_video(work)
        return
    detector = detector_of(unit.job)
    if unit.kind == WorkUnit.Kind.IMAGES:
        _process_batch(work, detector)
    else:
        _process_range(work, detector)


def _process_batch(work: Work, detector: Detector) -> None:
    """Detect in every image of a batch and draw it; an image at fault fails alone."""
    sink = ResultSink(work, detector)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="od-unit-")))
        targets = {
            part.pk: folder / f"{part.pk}.{annotated_extension(part.job_file.media_file)}"
            for part in work.parts
        }
        tasks: list[ImageTask] = []
        there: list[UnitFile] = []
        drawn: dict[int, Path] = {}
        faults: dict[int, FileFault] = {}
        for part in work.parts:
            try:
                source = stack.enter_context(media_copy(part.job_file.media_file))
            except MediaError as error:
                faults[part.job_file_id] = FileFault(error.code, error.detail)
                continue
            tasks.append(ImageTask(source, targets[part.pk]))
            there.append(part)
        # Within a picture as well: a thousand tiles of it may take longer than silence is borne.
        outcomes = process_images(
            tasks, detector, on_progress=work.note_progress, limits=media_limits()
        )
        stack.callback(outcomes.close)
        for part, outcome in zip(there, outcomes, strict=True):
            if outcome.error is not None:
                faults[part.job_file_id] = FileFault(outcome.error.code, outcome.error.detail)
                continue
            sink.store([(part, FrameDetections(0, 0.0, outcome.detections))])
            drawn[part.job_file_id] = targets[part.pk]
        _end_with_files(work, drawn, faults=faults)


def _process_range(work: Work, detector: Detector) -> None:
    """Detect in a range of a video; draw it as a segment, or wholly if it is all of the video.

    Where objects are to be followed the finish draws, because their numbers are known then only.
    """
    (part,) = work.parts
    media_file = part.job_file.media_file
    sink = ResultSink(work, detector)
    options = work.options
    is_whole = part.job_file.parts.count() == 1
    with (
        tempfile.TemporaryDirectory(prefix="od-unit-") as folder,
        media_copy(media_file) as source,
    ):
        segment = Path(folder) / "segment.mp4"
        process_video(
            source,
            detector,
            annotated=None if options.tracking else segment,
            on_frames=lambda frames: sink.store([(part, frame) for frame in frames]),
            first_frame_index=part.first_frame_index,
            max_frames=part.frame_count,
            frame_stride=options.frame_stride,
            seek_plan=SeekPlan.from_json(media_file.seek_plan),
            on_progress=work.note_progress,
            limits=media_limits(),
            is_damaged=bool(media_file.warning),
        )
        if options.tracking:
            while_database_is_away(lambda: services.complete_range(claim=work.claim, segment=""))
            return
        if is_whole:
            _join_and_end(work, [segment], source, Path(folder))
            return
        with _stored(work, {part.job_file_id: segment}) as stored:
            while_database_is_away(
                lambda: services.complete_range(claim=work.claim, segment=stored[part.job_file_id])
            )


def _finish_video(work: Work) -> None:
    """Join the annotated ranges of a video into one file, with its sound; then drop them."""
    if work.options.tracking:
        _track_and_draw(work)
        return
    (part,) = work.parts
    ranges = part.job_file.parts.exclude(pk=part.pk).order_by("first_frame_index")
    names = list(ranges.values_list("segment", flat=True))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="od-unit-")))
        source = stack.enter_context(media_copy(part.job_file.media_file))
        segments = [stack.enter_context(local_copy(name)) for name in names]
        _join_and_end(work, segments, source, folder)
    for name in names:
        # What stays behind here is found by the sweeper.
        with contextlib.suppress(OSError):
            default_storage.delete(name)


def _track_and_draw(work: Work) -> None:
    """Follow the objects of a video through what its ranges have stored, and draw them."""
    (part,) = work.parts
    job, media_file = work.unit.job, part.job_file.media_file
    track_video(claim=work.claim, job=job, media_file=media_file, on_progress=work.note_progress)
    found = (
        FrameDetections(frame.frame_index, frame.time_seconds, stored_detections(frame))
        for frame in frame_results(job=job, media_file=media_file)
    )
    with (
        tempfile.TemporaryDirectory(prefix="od-unit-") as folder,
        media_copy(media_file) as source,
    ):
        drawn = Path(folder) / "drawn.mp4"
        draw_video(
            source,
            found,
            job.class_names,
            annotated=drawn,
            frame_stride=work.options.frame_stride,
            on_progress=work.note_progress,
            limits=media_limits(),
        )
        _join_and_end(work, [drawn], source, Path(folder))


# -- annotated files -----------------------------------------------------------------------------


def _join_and_end(work: Work, segments: Sequence[Path], source: Path, folder: Path) -> None:
    """Make one file of the annotated pictures of a video and its sound, and end the unit."""
    (part,) = work.parts
    whole = folder / "annotated.mp4"
    # The last attempt goes without sound: what dies of it must not cost the video.
    is_last = work.unit.tries >= settings.UNIT_MAX_ATTEMPTS
    join_segments(
        segments,
        whole,
        sound_from=None if is_last else source,
        on_progress=work.note_progress,
    )
    _end_with_files(work, {part.job_file_id: whole})


def _end_with_files(
    work: Work, drawn: Mapping[int, Path], *, faults: Mapping[int, FileFault] | None = None
) -> None:
    """Store what was drawn, by the number of the job's file, and end the unit and these files."""
    with _stored(work, drawn) as stored:
        while_database_is_away(
            lambda: services.complete_unit(claim=work.claim, annotated=stored, faults=faults)
        )


@contextlib.contextmanager
def _stored(work: Work, drawn: Mapping[int, Path]) -> Iterator[dict[int, str]]:
    """Put files into storage for the transaction in the block; without it they go again."""
    claim = work.claim
    stored: dict[int, str] = {}
    try:
        for file_id, path in drawn.items():
            with path.open("rb") as content:
                name = _result_name(claim, file_id, claim.attempt, path.suffix)
                stored[file_id] = default_storage.save(name, File(content))
            work.lease.note_progress()
        yield stored
    except BaseException:
        for name in stored.values():
            _discard_unless_kept(claim, name)
        raise
    for file_id, path in drawn.items():
        for attempt in range(1, claim.attempt):
            # A worker that was killed at the wrong moment has left its file behind.
            with contextlib.suppress(OSError):
                default_storage.delete(_result_name(claim, file_id, attempt, path.suffix))


def _result_name(claim: Claim, file_id: int, attempt: int, suffix: str) -> str:
    return f"results/{claim.job_id}/{file_id}-{claim.unit_id}-{attempt}{suffix}"


def _discard_unless_kept(claim: Claim, stored: str) -> None:
    """Remove an annotated file that belongs to nothing.

    A commit whose answer got lost looks like a failure, so the database is asked; while it
    cannot be, a file too many is better than one too few.
    """
    with contextlib.suppress(DatabaseError, InterfaceError):
        files = JobFile.objects.filter(job_id=claim.job_id, annotated=stored)
        ranges = UnitFile.objects.filter(unit_id=claim.unit_id, segment=stored)
        if not files.exists() and not ranges.exists():
            default_storage.delete(stored)


def annotated_extension(media_file: MediaFile) -> str:
    """The extension of an image's annotated copy: common formats are kept."""
    return DRAWABLE_FORMATS.get(media_file.format, "png")


@contextlib.contextmanager
def media_copy(media_file: MediaFile) -> Iterator[Path]:
    """The media file as a local file, for as long as the block lasts.

    Raises MediaError for one that somebody has removed: to try again brings nothing back.
    """
    name = str(media_file.content.name)
    # A storage that is away as a whole is waited for, as a disk that fails is.
    if not default_storage.exists(name) and default_storage.exists(name.rpartition("/")[0]):
        raise MediaError("file_missing", "The file is no longer in the storage.", 422)
    with local_copy(name) as path:
        yield path


# -- what is found -------------------------------------------------------------------------------


class ResultSink:
    """Takes each batch of detections: stops if told to, stores it, and reports progress."""

    def __init__(self, work: Work, detector: Detector) -> None:
        self._work = work
        self._class_names = detector.class_names
        self._frames_done: dict[int, int] = {}
        self._published_at = 0.0

    def store(self, found: Sequence[tuple[UnitFile, FrameDetections]]) -> None:
        """Store a batch; raises WorkerStoppingError or LeaseLostError to end the unit."""
        self._work.note_progress()
        claim = self._work.claim
        for part, _ in found:
            self._frames_done[part.pk] = self._frames_done.get(part.pk, 0) + 1
        frames_done = {part.pk: self._frames_done[part.pk] for part, _ in found}
        results = [self._frame_result(part, frame) for part, frame in found]
        while_database_is_away(
            lambda: services.store_frames(claim=claim, frames=results, frames_done=frames_done)
        )
        now = time.monotonic()
        if now - self._published_at >= settings.PROGRESS_INTERVAL_SECONDS:
            self._published_at = now
            while_database_is_away(lambda: services.publish_progress(claim=claim))

    def _frame_result(self, part: UnitFile, frame: FrameDetections) -> FrameResult:
        found = frame.detections
        displayed = found.above(DISPLAY_CONFIDENCE)
        # Weights that were taken in before names had to differ may have one twice.
        counts = Counter(self._class_names[class_id] for class_id in displayed.class_ids.tolist())
        return FrameResult(
            job_id=self._work.claim.job_id,
            media_file_id=part.job_file.media_file_id,
            frame_index=frame.frame_index,
            time_seconds=frame.time_seconds,
            class_ids=found.class_ids.astype("<i2").tobytes(),
            confidences=found.confidences.astype("<f4").tobytes(),
            boxes_xyxy=found.boxes_xyxy.astype("<f4").tobytes(),
            class_counts=dict(counts),
        )

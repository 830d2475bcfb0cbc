"""Two jobs on one dataset side by side: how far they agree, and what only one of them found.

Computed from stored frame results when somebody asks. Only frames that both jobs looked at are
compared, and of very long videos only as many as a web process has time for.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from django.conf import settings

from accounts.models import User
from datasets.models import MediaFile
from datasets.uploading import media_limits
from inference.confined import ChildLimits, ConfinedChildError, answer_of_child, picture_of
from inference.models import FrameResult, Job
from inference.pipeline.compare import Matching, match
from inference.pipeline.options import DISPLAY_CONFIDENCE
from inference.selectors import class_name, stored_detections, user_job
from odproject.core.errors import ConflictError, DomainError, NotFoundError
from odproject.core.files import local_copy
from odproject.core.turns import turn

logger = logging.getLogger(__name__)
LARGEST_FRAME_INDEX = 2**31 - 1
MAX_FRAMES = 20_000
MAX_SECONDS = 20.0  # so many frames of hundreds of boxes each would take minutes
ROWS_PER_READ = 500
PICTURE_SIDE_PIXELS = 1600
AT_A_TIME = 2  # of a web process, of either kind; pages show several, and others want answers too
WAIT_SECONDS = 10.0

_picture_slots = threading.BoundedSemaphore(AT_A_TIME)
_comparison_slots = threading.BoundedSemaphore(AT_A_TIME)


class NotComparableError(DomainError):
    """The two jobs have nothing in common that could be compared."""

    code = "not_comparable"
    title = "The jobs cannot be compared"


class UnfinishedComparisonError(ConflictError):
    """One of the jobs goes on."""

    code = "job_unfinished"
    title = "A job has not ended"


class FrameNotComparedError(NotFoundError):
    """The jobs did not both look at this frame."""

    code = "frame_not_compared"
    title = "No such frame in both jobs"


class PictureUnavailableError(DomainError):
    """The picture cannot be drawn, or not in time."""

    status = 422
    code = "picture_unavailable"
    title = "The picture cannot be drawn"


class ComparisonsBusyError(DomainError):
    """As many comparisons are made or drawn as this process can bear."""

    status = 503
    code = "too_many_comparisons"
    title = "Too many comparisons at once"
    retry_after_seconds = 5


@dataclass(frozen=True)
class Rules:
    """What counts: detections of at least this confidence, pairs of at least this overlap."""

    minimum_confidence: float = DISPLAY_CONFIDENCE
    iou: float = 0.5


@dataclass
class Tally:
    """Sums over frames."""

    frames: int = 0
    matched: int = 0
    same_class: int = 0
    only_first: int = 0
    only_second: int = 0

    def add(self, matching: Matching, same_class: int) -> None:
        """Count a frame."""
        self.frames += 1
        self.matched += len(matching.pairs)
        self.same_class += same_class
        self.only_first += len(matching.only_first)
        self.only_second += len(matching.only_second)

    @property
    def agreement(self) -> float | None:
        """Matched detections of all, 0 to 1 (Dice's coefficient); None where nothing was found."""
        found = 2 * self.matched + self.only_first + self.only_second
        return round(2 * self.matched / found, 4) if found else None

    @property
    def class_agreement(self) -> float | None:
        """Pairs that both call by the same name, of all pairs; None without a pair."""
        return round(self.same_class / self.matched, 4) if self.matched else None


@dataclass
class FileComparison:
    """One file: its sums, and the frame in which the jobs differ most."""

    media_file: MediaFile
    tally: Tally = field(default_factory=Tally)
    most_different_frame_index: int | None = None
    most_different_count: int = 0


@dataclass
class Comparison:
    """Two jobs side by side; `is_complete` is false when there were too many frames for all."""

    first: Job
    second: Job
    rules: Rules
    files: list[FileComparison] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    first_counts: Counter[str] = field(default_factory=Counter)
    second_counts: Counter[str] = field(default_factory=Counter)
    is_complete: bool = True


def users_pair(*, user: User, first_id: int, second_id: int) -> tuple[Job, Job]:
    """Two jobs of the user that can be compared; raises JobNotFoundError (404) besides."""
    pair = user_job(user=user, job_id=first_id), user_job(user=user, job_id=second_id)
    check_comparable(*pair)
    return pair


def check_comparable(first: Job, second: Job) -> None:
    """Raises NotComparableError (400) and UnfinishedComparisonError (409)."""
    if first.pk == second.pk:
        raise NotComparableError("A job cannot be compared with itself.")
    if first.dataset_id != second.dataset_id:
        raise NotComparableError("The jobs look at different datasets.")
    for job in (first, second):
        if job.finished_at is None:
            raise UnfinishedComparisonError(f"Job {job.pk} is {job.state}.")


def compare(first: Job, second: Job, *, rules: Rules) -> Comparison:
    """How far two comparable jobs agree, file by file in upload order.

    Raises ComparisonsBusyError (503).
    """
    comparison = Comparison(first, second, rules)
    by_file: dict[int, FileComparison] = {}
    with _turn(_comparison_slots):
        deadline = time.monotonic() + MAX_SECONDS
        for mine, other in _frame_pairs(first, second):
            is_full = other is not None and comparison.tally.frames == MAX_FRAMES
            if is_full or time.monotonic() > deadline:
                comparison.is_complete = False
                break
            if other is None:
                continue
            found = by_file.get(mine.media_file_id)
            if found is None:
                found = by_file[mine.media_file_id] = FileComparison(mine.media_file)
            _add_frame(comparison, found, mine, other)
    comparison.files = list(by_file.values())
    return comparison


def _add_frame(
    comparison: Comparison, file: FileComparison, mine: FrameResult, other: FrameResult
) -> None:
    rules = comparison.rules
    first = stored_detections(mine).above(rules.minimum_confidence)
    second = stored_detections(other).above(rules.minimum_confidence)
    first_names = [class_name(comparison.first.class_names, int(one)) for one in first.class_ids]
    second_names = [class_name(comparison.second.class_names, int(one)) for one in second.class_ids]
    matching = match(first, second, iou=rules.iou)
    same_class = sum(first_names[a] == second_names[b] for a, b in matching.pairs)
    comparison.first_counts.update(first_names)
    comparison.second_counts.update(second_names)
    comparison.tally.add(matching, same_class)
    file.tally.add(matching, same_class)
    different = len(matching.only_first) + len(matching.only_second)
    if file.most_different_frame_index is None or different > file.most_different_count:
        file.most_different_frame_index = mine.frame_index
        file.most_different_count = different


def _frame_pairs(first: Job, second: Job) -> Iterator[tuple[FrameResult, FrameResult | None]]:
    """Frames of the first job by file and frame, as far as the second goes, and the second's.

    None stands for a step without a pair: a frame that only one of them has looked at. So whoever
    takes the pairs hears of every row that is read. No more than a slice is held.
    """
    others = _frames(second)
    other = next(others, None)
    for mine in _frames(first):
        while other is not None and _place(other) < _place(mine):
            yield mine, None
            other = next(others, None)
        if other is None:
            return
        yield mine, other if _place(other) == _place(mine) else None


def _place(frame: FrameResult) -> tuple[int, int]:
    return frame.media_file_id, frame.frame_index


def _frames(job: Job) -> Iterator[FrameResult]:
    """The results of a job by file and frame, in slices of constant size."""
    last = (0, -1)
    while True:
        # As one comparison it goes by the index of the constraint that makes a frame's result
        # the only one, however long the job is.
        rows = list(
            FrameResult.objects.filter(job=job)
            .extra(
                where=[
                    "(inference_frameresult.media_file_id, inference_frameresult.frame_index)"
                    " > (%s, %s)"
                ],
                params=list(last),
            )
            .select_related("media_file")
            .order_by("media_file_id", "frame_index")[:ROWS_PER_READ]
        )
        yield from rows
        if len(rows) < ROWS_PER_READ:
            return
        last = _place(rows[-1])


def picture_query(comparison: Comparison, file: FileComparison) -> str:
    """The query parameters of the picture of a file's most different frame."""
    return urlencode(
        {
            "with": comparison.second.pk,
            "media_file_id": file.media_file.pk,
            "frame_index": file.most_different_frame_index,
            "minimum_confidence": comparison.rules.minimum_confidence,
            "iou": comparison.rules.iou,
        }
    )


# -- pictures ------------------------------------------------------------------------------------


def difference_picture(
    first: Job, second: Job, *, media_file_id: int, frame_index: int, rules: Rules
) -> bytes:
    """A JPEG of a frame with what only one job found in it, and what both did.

    A confined process decodes the file. Raises FrameNotComparedError (404) and
    PictureUnavailableError (422), ComparisonsBusyError (503).
    """
    where = {"media_file_id": media_file_id, "frame_index": frame_index}
    mine = FrameResult.objects.filter(job=first, **where).select_related("media_file").first()
    other = FrameResult.objects.filter(job=second, **where).first()
    if mine is None or other is None:
        raise FrameNotComparedError("The two jobs did not both look at this frame.")
    found = stored_detections(mine).above(rules.minimum_confidence)
    others = stored_detections(other).above(rules.minimum_confidence)
    matching = match(found, others, iou=rules.iou)
    # Decoded from its beginning, a frame far into a long video would not come in time.
    task = {
        "seek_plan": mine.media_file.seek_plan,
        "media_limits": asdict(media_limits()),
        "is_video": mine.media_file.media_type == MediaFile.MediaType.VIDEO,
        "frame_index": frame_index,
        "both": found.boxes_xyxy[matching.pairs[:, 0]].tolist(),
        "only_first": found.boxes_xyxy[matching.only_first].tolist(),
        "only_second": others.boxes_xyxy[matching.only_second].tolist(),
        "names": [_label(first, second), _label(second, first)],
        "largest_side_pixels": PICTURE_SIDE_PIXELS,
    }
    limits = ChildLimits(
        memory_bytes=settings.INSPECTION_MEMORY_BYTES,
        seconds=settings.COMPARISON_PICTURE_SECONDS,
        cpu_seconds=settings.COMPARISON_PICTURE_SECONDS,
        hidden=Path(settings.DATA_DIR),
    )
    try:
        with _turn(_picture_slots), local_copy(str(mine.media_file.content.name)) as path:
            return picture_of(answer_of_child("inference.picture_child", task, path, limits))
    except ConfinedChildError as error:
        raise PictureUnavailableError(error.detail) from error
    except OSError as error:
        logger.warning("A picture for a comparison cannot be drawn: %s", error)
        raise PictureUnavailableError("The file cannot be read.") from error


def _turn(slots: threading.BoundedSemaphore) -> AbstractContextManager[None]:
    """Bound how much a process does at a time; raises ComparisonsBusyError (503)."""
    busy = ComparisonsBusyError("Too many comparisons at once; please try again.")
    return turn(slots, wait_seconds=WAIT_SECONDS, refusal=busy)


def _label(job: Job, other: Job) -> str:
    """What a job is called in a picture: its version, and its number where that does not tell."""
    version = job.model_version.version
    same = job.model_version_id == other.model_version_id
    return f"{version} (job {job.pk})" if same else version

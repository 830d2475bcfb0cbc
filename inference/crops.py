"""The objects that a job found, each as a small picture, to look through or to train on.

Pictures and videos of strangers are decoded in a confined child (`inference.crops_child`), which
gets some files at a time and sends crop after crop; a file that it cannot read is told beside the
crops of the others. What is held meanwhile is bounded by MAX_CROPS, whatever the job's size.
"""

import csv
import io
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.storage import default_storage

from datasets.models import MediaFile
from datasets.uploading import media_limits
from inference.confined import (
    ChildLimits,
    ConfinedChildError,
    answers_of_child,
    crashed,
    picture_of,
)
from inference.exports import CSV_COLUMNS, csv_row, frames_of, zip_info
from inference.models import Job
from inference.results import Pipe, UnusedNames, safe_archive_name
from inference.selectors import Wanted, displayed_objects
from odproject.core.errors import DomainError
from odproject.core.files import local_copy, storing

TABLE_NAME = "crops.csv"
# Starting a child takes as long as reading some pictures. Where the storage is no folder, what
# one child gets is copied to the disk first.
FILES_PER_CHILD = 64
BYTES_PER_CHILD = 256 * 1024**2
MAX_STEM_BYTES = 180  # a number, the frame and the object follow
GONE = "The file is no longer in the storage."


class TooManyCropsError(DomainError):
    """More crops than one request gets."""

    code = "too_many_crops"
    title = "Too many crops"


@dataclass(frozen=True)
class _Crop:
    """Where a crop goes in the archive, and what the table tells of it."""

    name: str
    row: tuple[Any, ...]


@dataclass(frozen=True)
class _File:
    """A file with what is cut out of it: boxes by frame, and the crops that are still to come."""

    media_file: MediaFile
    frames: list[tuple[int, list[list[float]]]] = field(default_factory=list)
    crops: deque[_Crop] = field(default_factory=deque)

    @property
    def stored_name(self) -> str:
        return str(self.media_file.content.name)

    @property
    def task(self) -> dict[str, Any]:
        """What the child is told of it."""
        return {
            "is_video": self.media_file.media_type == MediaFile.MediaType.VIDEO,
            "seek_plan": self.media_file.seek_plan,
            "frames": self.frames,
        }


Cut = tuple[_Crop, bytes, str]
"""A crop with its picture, or with nothing and a sentence why."""


def crops(job: Job, wanted: Wanted, *, padding: float) -> Iterator[bytes]:
    """A zip with a folder of JPEGs for each class, and a table of them, piece by piece.

    `padding`: by which share of its width and height a box grows on each side, as far as the
    picture reaches. Raises TooManyCropsError (400), StorageFullError (507) and
    StorageUnavailableError (503).
    """
    return _archive(job, _files_to_cut(job, wanted), padding)


def _files_to_cut(job: Job, wanted: Wanted) -> deque[_File]:
    """The files with something to cut out; raises TooManyCropsError (400)."""
    files: deque[_File] = deque()
    names = _CropNames()
    count = 0
    for named, frame in frames_of(job):
        found = displayed_objects(frame, job.class_names, wanted)
        count += len(found)
        if not found or count > settings.MAX_CROPS:
            continue  # only counted from there on
        if not files or files[-1].media_file != named.media_file:
            files.append(_File(named.media_file))
            stem = names.stem_for(named.stem)
        file = files[-1]
        file.frames.append((frame.frame_index, [list(one["box"].values()) for one in found]))
        for number, one in enumerate(found, 1):
            place = f"{stem}_frame_{frame.frame_index:06d}_object_{number:03d}"
            track = f"_track_{one['track_id']}" if one.get("track_id") else ""
            name = f"{names.folder_of(one['name'])}/{place}{track}.jpg"
            file.crops.append(_Crop(name, csv_row(named, frame, one)))
    if count > settings.MAX_CROPS:
        raise TooManyCropsError(
            f"There would be {count:,} crops, and {settings.MAX_CROPS:,} are the most at once; "
            "choose a higher minimum_confidence, or fewer classes by class_name.",
            fields=("minimum_confidence", "class_name"),
        )
    return files


class _CropNames:
    """Names that unpack as they are: one folder for each class, one beginning for each file."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._unused_folders, self._unused_stems = UnusedNames(), UnusedNames()
        self._unused_folders.reserve(TABLE_NAME)

    def folder_of(self, class_name: str) -> str:
        """Classes of one name share a folder."""
        if class_name not in self._folders:
            self._folders[class_name] = self._unused_folders.take(_flat(class_name))
        return self._folders[class_name]

    def stem_for(self, stem: str) -> str:
        """What the names of a file's crops begin with; no other file has got it."""
        return self._unused_stems.take(_flat(stem))


def _flat(name: str) -> str:
    """One short part of a path; nothing is hidden."""
    flat = safe_archive_name(name).replace("/", "_")
    shown = f"_{flat[1:]}" if flat.startswith(".") else flat
    return shown.encode()[:MAX_STEM_BYTES].decode(errors="ignore")


def _archive(job: Job, files: deque[_File], padding: float) -> Iterator[bytes]:
    pipe = Pipe()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("crop", *CSV_COLUMNS, "problem"))
    with zipfile.ZipFile(pipe, "w") as archive:  # type: ignore[call-overload]
        with closing(_cuts(files, padding)) as cuts:  # type: ignore[type-var]
            for crop, picture_jpeg, problem in cuts:
                if picture_jpeg:
                    info = zip_info(job, crop.name, compress_type=zipfile.ZIP_STORED)
                    archive.writestr(info, picture_jpeg)
                table.writerow((crop.name if picture_jpeg else "", *crop.row, problem))
                yield pipe.take()
        archive.writestr(zip_info(job, TABLE_NAME), text.getvalue())
    yield pipe.take()


def _cuts(waiting: deque[_File], padding: float) -> Iterator[Cut]:
    """Every crop in the order of files and frames, as long as there is time."""
    deadline = time.monotonic() + settings.CROPS_SECONDS
    while waiting:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            late = f"Its turn did not come within {settings.CROPS_SECONDS} seconds; choose less."
            yield from _without_picture(waiting.popleft(), late)
        elif not default_storage.exists(waiting[0].stored_name):
            yield from _without_picture(waiting.popleft(), GONE)
        else:
            yield from _cut_by_a_child(waiting, padding, left_seconds)


def _without_picture(file: _File, problem: str) -> Iterator[Cut]:
    for crop in file.crops:
        yield crop, b"", problem


def _cut_by_a_child(waiting: deque[_File], padding: float, seconds: float) -> Iterator[Cut]:
    """The crops of the first files that wait, up to one that cannot be read.

    What is done with waits no longer.
    """
    batch = _batch(waiting)
    limits = ChildLimits(
        memory_bytes=settings.INSPECTION_MEMORY_BYTES,
        seconds=seconds,
        cpu_seconds=2 * settings.CROPS_SECONDS,  # decoders have threads
        hidden=Path(settings.DATA_DIR),
    )
    task = {
        "media_limits": asdict(media_limits()),
        "padding": padding,
        "files": [file.task for file in batch],
    }
    try:
        with storing("crops"), ExitStack() as stack:
            paths = [stack.enter_context(local_copy(file.stored_name)) for file in batch]
            answers = answers_of_child("inference.crops_child", task, paths, limits)
            stack.enter_context(closing(answers))  # type: ignore[type-var]
            for file in batch:
                while file.crops:
                    answer = next(answers, None)
                    if answer is None:
                        raise crashed("it ended before its last picture")
                    picture_jpeg = picture_of(answer)
                    yield file.crops.popleft(), picture_jpeg, ""
                waiting.popleft()
    except ConfinedChildError as error:
        yield from _without_picture(waiting.popleft(), error.detail)


def _batch(waiting: deque[_File]) -> list[_File]:
    """The first files that wait: as many as one child gets, and at least one."""
    batch: list[_File] = []
    size_bytes = 0
    for file in islice(waiting, FILES_PER_CHILD):
        size_bytes += file.media_file.size_bytes
        is_next = size_bytes <= BYTES_PER_CHILD and default_storage.exists(file.stored_name)
        if batch and not is_next:
            break
        batch.append(file)
    return batch

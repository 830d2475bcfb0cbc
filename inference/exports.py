"""What a job found in the formats of the trade, from stored detections, piece by piece.

A job with results for a hundred thousand frames is written in little memory: frames are read
slice by slice, and only the names of its files are kept, in an archive those of its labels too.
Nothing is detected again, so that confidence and classes can be chosen afterwards.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from datasets.models import MediaFile
from inference.models import FrameResult, Job
from inference.pipeline.types import UNTRACKED
from inference.results import Pipe, UnusedNames, safe_archive_name
from inference.selectors import (
    Wanted,
    displayed_objects,
    files_of_job,
    frame_results,
)
from odproject.core.errors import ConflictError

# By which readers of YOLO's folders know a picture (ultralytics.data.utils.IMG_FORMATS).
PICTURE_SUFFIXES = frozenset(
    (
        "avif",
        "bmp",
        "dng",
        "heic",
        "heif",
        "jp2",
        "jpeg",
        "jpg",
        "mpo",
        "png",
        "tif",
        "tiff",
        "webp",
    )
)


class JobNotTrackedError(ConflictError):
    """The job was not told to track, so there are no ids to export."""

    code = "job_not_tracked"
    title = "The job has no tracks"


@dataclass(frozen=True)
class Export:
    """A format: what its file is called and is, and what writes it."""

    suffix: str
    content_type: str
    write: Callable[[Job, Wanted], Iterator[bytes]]


@dataclass(frozen=True)
class Named:
    """A file of a job under the name that it has in an export, without an extension.

    No two have the same, not even on a disk that tells no small letter from a capital: `car.jpg`
    and `car.png` become `car` and `car (2)`. A video is a folder of frames, in which no picture
    lies.
    """

    media_file: MediaFile
    stem: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return self.media_file.media_type == MediaFile.MediaType.VIDEO

    def frame_stem(self, frame: FrameResult) -> str:
        """Where a frame is, without an extension."""
        return f"{self.stem}/frame_{frame.frame_index:06d}" if self.is_video else self.stem

    def frame_file(self, frame: FrameResult) -> str:
        """The picture that a frame is: a video's are thought of as JPEG."""
        if self.is_video:
            return f"{self.frame_stem(frame)}.jpg"
        return self.frame_stem(frame) + self._picture_suffix

    @property
    def _picture_suffix(self) -> str:
        """The name's own where readers of YOLO's folders take it for a picture's."""
        given = _path_of(self.media_file.name).suffix
        is_known = given[1:].lower() in PICTURE_SUFFIXES
        return given if is_known else f".{self.media_file.format}"


def _path_of(name: str) -> PurePosixPath:
    """Where a file lies in an export; nothing is hidden, because readers pass over what is."""
    parts = safe_archive_name(name).split("/")
    return PurePosixPath(*(f"_{part[1:]}" if part.startswith(".") else part for part in parts))


def _named_files(
    job: Job, folder_name: Callable[[str], str] = lambda name: name
) -> Iterator[Named]:
    """The files of a job in upload order; `folder_name` says what a folder of theirs is called."""

    def path_of(name: str) -> PurePosixPath:
        path = _path_of(name)
        return PurePosixPath(*map(folder_name, path.parts[:-1]), path.name)

    files = files_of_job(job=job)
    pictures, videos = UnusedNames(), UnusedNames()
    of_pictures = files.filter(media_file__media_type=MediaFile.MediaType.IMAGE)
    for name in of_pictures.values_list("media_file__name", flat=True).iterator(chunk_size=500):
        videos.reserve(path_of(name).parts[0])
    for file in files.iterator(chunk_size=200):
        stem = path_of(file.media_file.name).with_suffix("")
        if file.media_file.media_type == MediaFile.MediaType.VIDEO:
            yield Named(file.media_file, videos.take(folder_name("_".join(stem.parts))))
        else:
            yield Named(file.media_file, pictures.take(str(stem)))


def frames_of(
    job: Job, folder_name: Callable[[str], str] = lambda name: name
) -> Iterator[tuple[Named, FrameResult]]:
    """Every frame of a job with its file, in the order of files and frames."""
    for named in _named_files(job, folder_name):
        for frame in frame_results(job=job, media_file=named.media_file):
            yield named, frame


# -- JSON lines and CSV --------------------------------------------------------------------------


def jsonl(job: Job, wanted: Wanted) -> Iterator[bytes]:
    """A line for every frame, with its objects as the API shows them."""
    for named, frame in frames_of(job):
        line = {
            "file": named.media_file.name,
            "media_file_id": frame.media_file_id,
            "type": named.media_file.media_type,
            "frame_number": frame.frame_index,
            "time": round(frame.time_seconds, 6),
            "width": named.media_file.width,
            "height": named.media_file.height,
            "objects": displayed_objects(frame, job.class_names, wanted),
        }
        yield json.dumps(line).encode() + b"\n"


CSV_COLUMNS = (
    "file",
    "media_file_id",
    "frame_number",
    "time",
    "class",
    "name",
    "confidence",
    "x1",
    "y1",
    "x2",
    "y2",
    "track_id",
)


def csv_table(job: Job, wanted: Wanted) -> Iterator[bytes]:
    """A row for every detection."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CSV_COLUMNS)
    for named, frame in frames_of(job):
        for one in displayed_objects(frame, job.class_names, wanted):
            rows.writerow(csv_row(named, frame, one))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def csv_row(named: Named, frame: FrameResult, one: dict[str, Any]) -> tuple[Any, ...]:
    """A detection of a frame, as `displayed_objects` has it, in CSV_COLUMNS."""
    return (
        named.media_file.name,
        frame.media_file_id,
        frame.frame_index,
        round(frame.time_seconds, 6),
        one["class"],
        one["name"],
        one["confidence"],
        *one["box"].values(),
        one.get("track_id"),
    )


# -- COCO ----------------------------------------------------------------------------------------


def coco(job: Job, wanted: Wanted) -> Iterator[bytes]:
    """One COCO document: an image for every picture and frame, and a scored annotation each box.

    Frames are read twice, because the images stand in front of the annotations.
    """
    head = {
        "info": {
            "description": f"Detections of job {job.pk}",
            "date_created": job.created_at.isoformat(),
            "minimum_confidence": wanted.minimum_confidence,
            "class_names": wanted.names_among(job.class_names),
        },
        "licenses": [],
        "categories": [
            {"id": class_id + 1, "name": name, "supercategory": "object"}
            for class_id, name in enumerate(job.class_names)
        ],
    }
    yield json.dumps(head)[:-1].encode() + b', "images": ['
    yield from _joined(_coco_image(named, frame) for named, frame in frames_of(job))
    yield b'], "annotations": ['
    yield from _joined(_coco_annotations(job, wanted))
    yield b"]}\n"


def _coco_image(named: Named, frame: FrameResult) -> dict[str, Any]:
    return {
        "id": frame.pk,
        "file_name": named.frame_file(frame),
        "width": named.media_file.width,
        "height": named.media_file.height,
        "media_file_id": frame.media_file_id,
        "original_name": named.media_file.name,
        "frame_number": frame.frame_index,
    }


def _coco_annotations(job: Job, wanted: Wanted) -> Iterator[dict[str, Any]]:
    number = 0
    for _, frame in frames_of(job):
        for one in displayed_objects(frame, job.class_names, wanted):
            number += 1
            x1, y1, x2, y2 = one["box"].values()
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            annotation = {
                "id": number,
                "image_id": frame.pk,
                "category_id": one["class"] + 1,
                "bbox": [x1, y1, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "segmentation": [],
                "score": one["confidence"],
            }
            if "track_id" in one:
                annotation["track_id"] = one["track_id"]
            yield annotation


def _joined(items: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """JSON objects with commas between them."""
    for number, item in enumerate(items):
        yield (b",\n" if number else b"\n") + json.dumps(item).encode()


# -- archives ------------------------------------------------------------------------------------


def yolo(job: Job, wanted: Wanted) -> Iterator[bytes]:
    """A zip of data.yaml and labels: a line `class x y width height` for every detection.

    The pictures belong into `images/` under the names that files.csv gives. No folder in there is
    called `images` as well: the labels are looked for by the last one of a path.
    """
    pipe = Pipe()
    listed = io.StringIO()
    table = csv.writer(listed, lineterminator="\n")
    table.writerow(("image", "file", "media_file_id", "frame_number"))
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr(zip_info(job, "data.yaml"), _data_yaml(job))
        for named, frame in frames_of(job, _yolo_folder):
            label = zip_info(job, f"labels/{named.frame_stem(frame)}.txt")
            archive.writestr(label, _yolo_lines(named.media_file, frame, wanted))
            yield pipe.take()
        with archive.open(zip_info(job, "files.csv"), "w", force_zip64=True) as target:
            for named, frame in frames_of(job, _yolo_folder):
                image = f"images/{named.frame_file(frame)}"
                original = (named.media_file.name, frame.media_file_id, frame.frame_index)
                table.writerow((image, *original))
                target.write(listed.getvalue().encode())
                listed.seek(0)
                listed.truncate()
                yield pipe.take()
    yield pipe.take()


def _yolo_folder(name: str) -> str:
    return "images_" if name == "images" else name


def _data_yaml(job: Job) -> str:
    # A list in JSON is one in YAML, but for escapes of two halves that are one letter.
    names = json.dumps(job.class_names, ensure_ascii=False)
    return f"path: .\ntrain: images\nval: images\nnames: {names}\n"


def _yolo_lines(media_file: MediaFile, frame: FrameResult, wanted: Wanted) -> str:
    found = wanted.among(frame)
    size_wh = np.array([media_file.width, media_file.height])
    corners = np.clip(found.boxes_xyxy.reshape(-1, 2, 2) / size_wh, 0, 1)
    centres, sides = corners.mean(axis=1), corners[:, 1] - corners[:, 0]
    rows = zip(found.class_ids.tolist(), centres.tolist(), sides.tolist(), strict=True)
    return "".join(
        f"{class_id} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"
        for class_id, (x, y), (width, height) in rows
    )


def mot(job: Job, wanted: Wanted) -> Iterator[bytes]:
    """A zip with a text for every video, as MOTChallenge has them.

    A line is frame (from 1), id, left, top, width, height, confidence, -1, -1, -1; boxes that
    belong to no track are left out. Raises JobNotTrackedError (409).
    """
    if not job.options.get("tracking"):
        raise JobNotTrackedError(f"Job {job.pk} was not submitted with tracking.")
    return _mot(job, wanted)


def _mot(job: Job, wanted: Wanted) -> Iterator[bytes]:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for named in _named_files(job):
            if not named.is_video:
                continue
            text = zip_info(job, f"{named.stem}.txt")
            with archive.open(text, "w", force_zip64=True) as target:
                for frame in frame_results(job=job, media_file=named.media_file):
                    target.write(_mot_lines(frame, wanted).encode())
                    yield pipe.take()
    yield pipe.take()


def _mot_lines(frame: FrameResult, wanted: Wanted) -> str:
    found = wanted.among(frame)
    if found.track_ids is None:
        return ""
    rows = zip(
        found.track_ids.tolist(), found.boxes_xyxy.tolist(), found.confidences.tolist(), strict=True
    )
    return "".join(
        f"{frame.frame_index + 1},{track_id},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},"
        f"{confidence:.5f},-1,-1,-1\n"
        for track_id, (x1, y1, x2, y2), confidence in rows
        if track_id != UNTRACKED
    )


def zip_info(job: Job, name: str, *, compress_type: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """A member of an archive of a job: as old as the job, and for everybody to read."""
    info = zipfile.ZipInfo(name, date_time=job.created_at.timetuple()[:6])
    info.compress_type = compress_type
    info.external_attr = 0o644 << 16
    return info


EXPORTS = {
    "coco": Export(".coco.json", "application/json", coco),
    "yolo": Export(".yolo.zip", "application/zip", yolo),
    "csv": Export(".csv", "text/csv", csv_table),
    "jsonl": Export(".jsonl", "application/x-ndjson", jsonl),
    "mot": Export(".mot.zip", "application/zip", mot),
}

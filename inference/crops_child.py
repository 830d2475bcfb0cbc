"""Cuts boxes out of pictures and videos; see `inference.confined` and `inference.crops`."""

import base64
import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from datasets.media.errors import MediaError
from datasets.media.images import read_image
from datasets.media.limits import MediaLimits
from datasets.media.seeking import SeekPlan
from datasets.media.video import iter_frames
from inference.confined_child import serve_each
from inference.pipeline.types import Image

LARGEST_SIDE_PIXELS = 2048  # of a crop; what is larger is made smaller
QUALITY = 92


def cut(task: dict[str, Any], paths: list[Path]) -> Iterator[dict[str, Any]]:
    """A JPEG for each box of each frame of each file, in this order.

    `files` has `is_video`, `seek_plan` as `SeekPlan.to_json` gives it, and `frames`: pairs of a
    frame's index, ascending, and its boxes (n, 4) in pixels of the upright picture. `padding`: by
    which share of itself a box grows on each side. `media_limits`: the values of `MediaLimits`.
    Raises MediaError and OSError.
    """
    limits = MediaLimits(**task["media_limits"])
    for file, path in zip(task["files"], paths, strict=True):
        images = _frames(path, file, limits) if file["is_video"] else _picture(path, limits)
        with closing(images):  # type: ignore[type-var]
            for image, (_, boxes_xyxy) in zip(images, file["frames"], strict=False):
                size_wh = (image.shape[1], image.shape[0])
                boxes = np.array(boxes_xyxy, np.float64)
                for left, top, right, bottom in windows(boxes, size_wh, task["padding"]).tolist():
                    picture_jpeg = _jpeg(image[top:bottom, left:right])
                    yield {"picture": base64.b64encode(picture_jpeg).decode()}


def windows(
    boxes_xyxy: npt.NDArray[np.float64], size_wh: tuple[int, int], padding: float
) -> npt.NDArray[np.int64]:
    """The whole pixels (n, 4) that boxes (n, 4) take up once they are grown, at least one each.

    They end where the picture does.
    """
    growth = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * padding
    size = np.array(size_wh)
    left_top = np.rint(boxes_xyxy[:, :2] - growth).clip(0, size - 1)
    right_bottom = np.rint(boxes_xyxy[:, 2:] + growth).clip(left_top + 1, size)
    return np.hstack([left_top, right_bottom]).astype(np.int64)


def _picture(path: Path, limits: MediaLimits) -> Iterator[Image]:
    yield read_image(path, limits=limits)


def _frames(path: Path, file: dict[str, Any], limits: MediaLimits) -> Iterator[Image]:
    """The pictures of the frames that something is cut out of; the others are passed over."""
    indexes = [index for index, _ in file["frames"]]
    wanted = iter(indexes)
    next_index = next(wanted)
    frames = iter_frames(
        path,
        first_frame_index=indexes[0],
        max_frames=indexes[-1] - indexes[0] + 1,
        seek_plan=SeekPlan.from_json(file["seek_plan"]),
        limits=limits,
    )
    with closing(frames):  # type: ignore[type-var]
        for frame in frames:
            if frame.frame_index == next_index:
                yield frame.image
                next_index = next(wanted, -1)
    if next_index >= 0:
        raise MediaError("no_such_frame", "The video has no such frame.", 422)


def _jpeg(image: Image) -> bytes:
    crop = PilImage.fromarray(image)
    crop.thumbnail((LARGEST_SIDE_PIXELS, LARGEST_SIDE_PIXELS))
    target = io.BytesIO()
    # Colours keep their full resolution: an object may be a few pixels wide.
    crop.save(target, "JPEG", quality=QUALITY, subsampling=0)
    return target.getvalue()


def main() -> None:
    """Cut what the task names."""
    serve_each(cut)


if __name__ == "__main__":
    main()

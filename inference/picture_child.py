"""Draws what two jobs found in one frame of a file; see `inference.confined`."""

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.media.errors import MediaError
from datasets.media.images import read_image
from datasets.media.video import iter_frames
from inference.confined_child import serve
from inference.pipeline.compare import draw_difference
from inference.pipeline.types import Image


def draw(task: dict[str, Any], path: Path) -> dict[str, Any]:
    """`both`, `only_first` and `only_second` are lists of boxes, `names` those of the jobs."""
    image = _frame(path, task["frame_index"]) if task["is_video"] else read_image(path)
    boxes = {
        key: np.array(task[key], np.float32).reshape(-1, 4)
        for key in ("both", "only_first", "only_second")
    }
    first, second = task["names"]
    drawn = draw_difference(
        image,
        **boxes,
        names=(first, second),
        largest_side_pixels=task["largest_side_pixels"],
    )
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    return {"picture": base64.b64encode(encoded.tobytes()).decode()}


def _frame(path: Path, frame_index: int) -> Image:
    with closing(iter_frames(path, first_frame_index=frame_index, max_frames=1)) as frames:  # type: ignore[type-var]
        for frame in frames:
            return frame.image
    raise MediaError("no_such_frame", "The video has no such frame.", 422)


if __name__ == "__main__":
    serve(draw)

"""Draws what two jobs found in one frame of a file; see `inference.confined`."""

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.media.errors import MediaError
from datasets.media.images import read_image
from datasets.media.limits import MediaLimits
from datasets.media.seeking import SeekPlan
from datasets.media.video import iter_frames
from inference.confined_child import serve
from inference.pipeline.compare import draw_difference
from inference.pipeline.types import Image


def draw(task: dict[str, Any], path: Path) -> dict[str, Any]:
    """`both`, `only_first` and `only_second` are lists of boxes, `names` those of the jobs.

    `seek_plan` as `SeekPlan.to_json` gives it, `media_limits` the values of `MediaLimits`.
    """
    limits = MediaLimits(**task["media_limits"])
    if task["is_video"]:
        plan = SeekPlan.from_json(task["seek_plan"])
        image = _frame(path, task["frame_index"], plan, limits)
    else:
        image = read_image(path, limits=limits)
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


def _frame(path: Path, frame_index: int, plan: SeekPlan | None, limits: MediaLimits) -> Image:
    frames = iter_frames(
        path, first_frame_index=frame_index, max_frames=1, seek_plan=plan, limits=limits
    )
    with closing(frames):  # type: ignore[type-var]
        for frame in frames:
            return frame.image
    raise MediaError("no_such_frame", "The video has no such frame.", 422)


def main() -> None:
    """Draw one picture."""
    serve(draw)


if __name__ == "__main__":
    main()

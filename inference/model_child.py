"""Reads weights, or tries them out on drawn streets; see `inference.confined`."""

import base64
import time
from pathlib import Path
from typing import Any

import cv2

from inference.confined_child import serve
from inference.pipeline.draw import draw
from inference.pipeline.network import load_detector
from inference.pipeline.options import DISPLAY_CONFIDENCE, DetectionOptions
from inference.pipeline.torch_network import prepare
from inference.pipeline.types import Image
from inference.pipeline.weights_reader import read_weights
from inference.scenes import draw_scene, match_boxes

SCENE_SEEDS = (2001, 2002)
PICTURE_WIDTH_PIXELS = 960


def look_at_weights(task: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the file holds (`kind` is "read"), or what its detector does."""
    config_dir = Path(task["folder"])
    if task["kind"] == "read":
        return {"facts": read_weights(path, config_dir=config_dir).to_dict()}
    return _try_out(path, task, config_dir)


def _try_out(path: Path, task: dict[str, Any], config_dir: Path) -> dict[str, Any]:
    """Detects in drawn streets and compares with what is really in them.

    `found` of `vehicles` and `false` count boxes of at least DISPLAY_CONFIDENCE whatever their
    class; `picture` is the first street with its detections, as JPEG in base64.
    """
    detector = load_detector(
        path,
        options=DetectionOptions.parse(task["options"]),
        device="cpu",
        threads=1,
        sha256=task["sha256"],
        config_dir=config_dir,
    )
    counts = {"vehicles": 0, "found": 0, "false": 0}
    by_class: dict[str, int] = {}
    picture, seconds = "", 0.0
    for seed in SCENE_SEEDS:
        scene = draw_scene(seed)
        start = time.perf_counter()
        shown = detector.detect([scene.image])[0].above(DISPLAY_CONFIDENCE)
        seconds += time.perf_counter() - start
        found, false = match_boxes(scene.boxes_xyxy, shown.boxes_xyxy)
        counts["vehicles"] += len(scene.boxes_xyxy)
        counts["found"] += found
        counts["false"] += false
        for class_id in shown.class_ids:
            name = detector.class_names[int(class_id)]
            by_class[name] = by_class.get(name, 0) + 1
        picture = picture or _small_jpeg(draw(scene.image, shown, detector.class_names))
    figures = {
        **counts,
        "by_class": by_class,
        "milliseconds_per_picture": round(1000 * seconds / len(SCENE_SEEDS)),
    }
    return {"figures": figures, "picture": picture}


def _small_jpeg(image: Image) -> str:
    height = round(image.shape[0] * PICTURE_WIDTH_PIXELS / image.shape[1])
    small = cv2.resize(image, (PICTURE_WIDTH_PIXELS, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    return base64.b64encode(encoded.tobytes()).decode()


if __name__ == "__main__":
    serve(look_at_weights, prepare=prepare)

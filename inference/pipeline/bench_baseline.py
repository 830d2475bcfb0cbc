"""How a user of Ultralytics does it today, for the benchmark to compare with.

That is `YOLO.predict(stream=True, save=True)`. It imports torchvision, which a CPU build of torch
may not load; there, it is the same steps from Ultralytics' own modules, one frame at a time:
letterbox, network, suppression, scaling, and for `save=True` its drawing and its video writer.

For photographs in tiles there is SAHI, too, where it is installed (`pip install sahi`) and
torchvision loads: the same weights, tiles and rule of merging, and a look at the whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from datasets.media.video import iter_frames
from inference.pipeline.options import Tiling
from inference.pipeline.torch_network import load_model, ultralytics_kept_quiet
from inference.pipeline.types import Image

FOUND_FROM, IOU = 0.25, 0.7  # the defaults of `predict`
_IMAGES_A_BATCH = 8


class Baseline(Protocol):
    """Ultralytics' way with one network."""

    name: str

    def watch(self, video: Path, frame_count: int, saved_to: Path | None) -> int:
        """Looks at the first frames of a video and writes them drawn if told into which folder;
        returns how many objects it found.
        """

    def look_at(self, images: Sequence[Image]) -> int:
        """Looks at RGB images; returns how many objects it found."""


def ultralytics_way(weights: Path, *, image_size: int, device: str, threads: int) -> Baseline:
    """`predict` where it runs here, else its steps."""
    chosen = _Predict if _loads("torchvision") else _Steps
    return chosen(weights, image_size, device, threads)


def sahi_way(weights: Path, *, image_size: int, device: str, threads: int) -> Sahi | None:
    """SAHI with these weights, or None where it does not run."""
    if not _loads("torchvision") or not _loads("sahi"):
        return None
    return Sahi(weights, image_size, device, threads)


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError):  # one that was built for another torch
        return False
    return True


class _Predict:
    """`YOLO.predict` as it comes."""

    name = "Ultralytics' predict"

    def __init__(self, weights: Path, image_size: int, device: str, threads: int) -> None:
        with ultralytics_kept_quiet(None):
            from ultralytics import YOLO  # heavy, and configured by environment
        self._model = YOLO(weights)
        self._threads = threads
        self._settings: dict[str, Any] = {
            "imgsz": image_size,
            "device": device,
            "conf": FOUND_FROM,
            "iou": IOU,
            "stream": True,
            "verbose": False,
        }

    def watch(self, video: Path, frame_count: int, saved_to: Path | None) -> int:
        """See `Baseline`."""
        saving: dict[str, Any] = {"save": False}
        if saved_to is not None:
            saving = {"save": True, "project": str(saved_to), "name": "theirs", "exist_ok": True}
        return self._predict(str(video), saving, frame_count)

    def look_at(self, images: Sequence[Image]) -> int:
        """See `Baseline`."""
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        return self._predict(bgr, {"save": False, "batch": _IMAGES_A_BATCH}, len(images))

    def _predict(self, source: Any, settings: dict[str, Any], count: int) -> int:
        torch.set_num_threads(self._threads)
        results = self._model.predict(source, **self._settings, **settings)
        return sum(len(result) for result in islice(results, count))


class _Steps:
    """What `predict` does, step by step."""

    name = "Ultralytics' steps"

    def __init__(self, weights: Path, image_size: int, device: str, threads: int) -> None:
        self._module = load_model(weights, None).fuse(verbose=False).eval().to(device)
        # Only here and in torch_network.py: the comparison is with Ultralytics, so it is what runs.
        from ultralytics.data.augment import LetterBox

        self._letterbox = LetterBox(image_size, auto=True, stride=32)
        self._device = device
        self._threads = threads

    def watch(self, video: Path, frame_count: int, saved_to: Path | None) -> int:
        """See `Baseline`."""
        images = (frame.image for frame in iter_frames(video, max_frames=frame_count))
        return self._look_at(images, saved_to)

    def look_at(self, images: Sequence[Image]) -> int:
        """See `Baseline`."""
        return self._look_at(images, None)

    def _look_at(self, images: Iterable[Image], saved_to: Path | None) -> int:
        torch.set_num_threads(self._threads)
        found_count, writer = 0, None
        for image in images:
            result = self._look_at_one(image)
            found_count += len(result)
            if saved_to is None:
                continue
            drawn = result.plot()
            if writer is None:
                name, size_wh = str(saved_to / "theirs.mp4"), (drawn.shape[1], drawn.shape[0])
                writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, size_wh)
            writer.write(drawn)
        if writer is not None:
            writer.release()
        return found_count

    def _look_at_one(self, image: Image) -> Any:
        from ultralytics.engine.results import Results
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        bgr = np.ascontiguousarray(image[..., ::-1])  # what OpenCV's readers give
        fitted = self._letterbox(image=bgr)
        inputs = np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1)[None])
        with torch.inference_mode():
            raw = self._module(torch.from_numpy(inputs).to(self._device).float() / 255)[0]
            found = non_max_suppression(raw, conf_thres=FOUND_FROM, iou_thres=IOU)[0]
            found[:, :4] = scale_boxes(fitted.shape[:2], found[:, :4], bgr.shape[:2])
        return Results(bgr, path="frame.jpg", names=self._module.names, boxes=found)


class Sahi:
    """`sahi.predict.get_sliced_prediction`, several tiles at a time."""

    name = "SAHI"

    def __init__(self, weights: Path, image_size: int, device: str, threads: int) -> None:
        with ultralytics_kept_quiet(None):
            self._model = importlib.import_module("sahi").AutoDetectionModel.from_pretrained(
                model_type="ultralytics",
                model_path=str(weights),
                confidence_threshold=FOUND_FROM,
                image_size=image_size,
                device=device,
                fuse=True,
            )
        self._predict: Any = importlib.import_module("sahi.predict").get_sliced_prediction
        self._threads = threads

    def look_at(self, image: Image, tiling: Tiling, iou: float) -> int:
        """Looks at an RGB image, whole and in tiles; returns how many objects it found."""
        torch.set_num_threads(self._threads)
        result = self._predict(
            image,
            self._model,
            slice_height=tiling.tile,
            slice_width=tiling.tile,
            overlap_height_ratio=tiling.overlap,
            overlap_width_ratio=tiling.overlap,
            postprocess_type="NMS",
            postprocess_match_metric="IOU",
            postprocess_match_threshold=iou,
            batch_size=_IMAGES_A_BATCH,
            verbose=0,
        )
        return len(result.object_prediction_list)

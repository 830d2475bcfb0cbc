"""YOLOv8 through Ultralytics' modules: the only file that imports torch and ultralytics.

Never imported by the web process. Only the network itself is Ultralytics'; resizing, decoding of
the boxes and merging are ours, because their own predictor imports torchvision, decodes boxes in
half precision (steps of a whole pixel beyond 1024) and stops merging at a time limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from inference.pipeline.detector import (
    DEFAULT_CONFIDENCE_FLOOR,
    DEFAULT_IMAGE_SIZE,
    DEFAULT_IOU,
    DEFAULT_MAX_DETECTIONS,
)
from inference.pipeline.errors import PipelineError, WeightsError
from inference.pipeline.letterbox import STRIDE_PIXELS, Letterbox
from inference.pipeline.merge import merge
from inference.pipeline.types import Detections, Image

Precision = Literal["auto", "fp32", "fp16", "bf16"]

_MAX_CANDIDATES = 30_000  # per image, as in Ultralytics
_BATCH_SIZE_CPU = 4
_BATCH_SIZE_CUDA = 32


def load_detector(
    weights: Path,
    *,
    confidence_floor: float = DEFAULT_CONFIDENCE_FLOOR,
    iou: float = DEFAULT_IOU,
    max_detections: int = DEFAULT_MAX_DETECTIONS,
    image_size: int = DEFAULT_IMAGE_SIZE,
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    sha256: str | None = None,
    config_dir: Path | None = None,
) -> YoloDetector:
    """A detector from an Ultralytics checkpoint, on the best device and precision at hand.

    `image_size`: the longer side of the network's input in pixels, a multiple of 32. `device`:
    as torch names it; CUDA if there is any by default. `threads`: of torch on the CPU; left as
    they are by default. `sha256`: the digest that the file must have. `config_dir`: where
    Ultralytics keeps its settings; by default a folder in OD_DATA_DIR, or a temporary one.

    Only classes that Ultralytics' list of known modules allows are unpickled from the file.
    Raises WeightsError (`weights_missing`, `weights_changed`, `weights_unreadable`) and
    ValueError for settings that make no sense.
    """
    if image_size <= 0 or image_size % STRIDE_PIXELS:
        raise ValueError(f"image_size must be a positive multiple of {STRIDE_PIXELS}")
    if not (0 < confidence_floor < 1 and 0 <= iou <= 1 and max_detections > 0):
        raise ValueError("confidence_floor, iou or max_detections is out of its range")
    if threads is not None:
        torch.set_num_threads(threads)
    chosen_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    digest = _checked_digest(weights, sha256)
    return YoloDetector(
        _load_model(weights, config_dir),
        sha256=digest,
        device=chosen_device,
        precision=_best_precision(chosen_device) if precision == "auto" else precision,
        confidence_floor=confidence_floor,
        iou=iou,
        max_detections=max_detections,
        image_size=image_size,
    )


class YoloDetector:
    """A loaded network that satisfies `detector.Detector`; build it with `load_detector`."""

    def __init__(
        self,
        model: Any,
        *,
        sha256: str,
        device: torch.device,
        precision: str,
        confidence_floor: float,
        iou: float,
        max_detections: int,
        image_size: int,
    ) -> None:
        self.sha256 = sha256
        self.class_names: tuple[str, ...] = tuple(model.names[i] for i in range(len(model.names)))
        self.device = str(device)
        self.precision = precision
        self.image_size = image_size
        self.preferred_batch_size = _BATCH_SIZE_CUDA if device.type == "cuda" else _BATCH_SIZE_CPU
        self._iou = iou
        self._confidence_floor = confidence_floor
        self._max_detections = max_detections
        self._strides = [int(stride) for stride in model.stride.tolist()]
        self._half_weights = precision == "fp16"
        model = model.fuse(verbose=False).eval().requires_grad_(False)
        # In its training mode the last module returns logits and distances as they are, which
        # are decoded here in full precision and only for the boxes above the floor.
        model.model[-1].training = True
        model = model.to(device, memory_format=torch.channels_last)
        self._model = model.half() if self._half_weights else model

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` per image, in order, the most confident first.

        `images`: RGB uint8 (height, width, 3) of any, also mixed, sizes. Images whose input has
        the same shape run together, at most `preferred_batch_size` at a time. When the device's
        memory does not suffice, the batch is halved, and stays so for the calls to come; raises
        PipelineError (`out_of_memory`) when it does not suffice for one image.
        """
        boxes = [
            Letterbox.fit((image.shape[1], image.shape[0]), self.image_size) for image in images
        ]
        groups: dict[tuple[int, int], list[int]] = {}
        for position, box in enumerate(boxes):
            groups.setdefault(box.input_wh, []).append(position)
        found = [Detections.empty()] * len(images)
        for positions in groups.values():
            start = 0
            while start < len(positions):
                part = positions[start : start + self.preferred_batch_size]
                try:
                    results = self._detect_alike(
                        [images[i] for i in part], [boxes[i] for i in part]
                    )
                except torch.OutOfMemoryError as error:
                    self._shrink_batch(len(part), error)
                    continue
                for position, result in zip(part, results, strict=True):
                    found[position] = result
                start += len(part)
        return found

    def warm_up(self) -> None:
        """Runs one full batch of grey images, so that the first real one is not the slow one."""
        grey = np.full((self.image_size, self.image_size, 3), 114, np.uint8)
        self.detect([grey] * self.preferred_batch_size)

    def run_network(self, inputs: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (batch, classes, cells) and box distances (batch, 4 * bins, cells).

        `inputs`: letterboxed RGB images, uint8 (batch, height, width, 3), sides multiples of 32.
        """
        with torch.inference_mode(), self._autocast():
            batch = torch.from_numpy(inputs).to(self.device, non_blocking=True)
            # NHWC seen as NCHW is exactly channels_last: no copy is made before the conversion.
            batch = batch.permute(0, 3, 1, 2)
            batch = (batch.half() if self._half_weights else batch.float()).div_(255)
            raw = self._model(batch)
        return raw["scores"], raw["boxes"]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _shrink_batch(self, size: int, error: BaseException) -> None:
        torch.cuda.empty_cache()
        if size <= 1:
            raise PipelineError(
                "out_of_memory", "The device's memory does not suffice for one image."
            ) from error
        self.preferred_batch_size = size // 2

    def _detect_alike(
        self, images: Sequence[Image], boxes: Sequence[Letterbox]
    ) -> list[Detections]:
        width, height = boxes[0].input_wh
        inputs = np.empty((len(images), height, width, 3), np.uint8)
        for image, box, target in zip(images, boxes, inputs, strict=True):
            box.lay_into(image, target)
        owners, *found = self._candidates(*self.run_network(inputs), (width, height))
        results = []
        for position, box in enumerate(boxes):
            class_ids, confidences, boxes_xyxy = (part[owners == position] for part in found)
            results.append(self._merged(class_ids, confidences, boxes_xyxy, box))
        return results

    def _candidates(
        self, logits: torch.Tensor, distances: torch.Tensor, input_wh: tuple[int, int]
    ) -> tuple[npt.NDArray[Any], ...]:
        """Image, class, confidence and box (in the input's pixels) of all above the floor.

        A cell's box lies `distance * stride` to each side of its centre, a distance being the
        expectation over its bins: Li et al., Generalized Focal Loss, 2020, equation 4.
        """
        with torch.inference_mode():
            best, classes = logits.max(dim=1)
            floor_logit = math.log(self._confidence_floor / (1 - self._confidence_floor))
            images, cells = (best > floor_logit).nonzero(as_tuple=True)
            centres, strides = _grid(input_wh, tuple(self._strides), self.device)
            bins = distances.shape[1] // 4
            weights = distances[images, :, cells].float().view(-1, 4, bins).softmax(dim=-1)
            sides = (weights * torch.arange(bins, device=weights.device)).sum(dim=-1)
            sides = sides * strides[cells, None]
            boxes = torch.cat((centres[cells] - sides[:, :2], centres[cells] + sides[:, 2:]), dim=1)
            confidences = best[images, cells].float().sigmoid()
            found = (images, classes[images, cells], confidences, boxes)
            return tuple(part.cpu().numpy() for part in found)

    def _merged(
        self,
        class_ids: npt.NDArray[np.int64],
        confidences: npt.NDArray[np.float32],
        boxes_xyxy: npt.NDArray[np.float32],
        box: Letterbox,
    ) -> Detections:
        if len(confidences) > _MAX_CANDIDATES:
            best = np.argpartition(-confidences, _MAX_CANDIDATES)[:_MAX_CANDIDATES]
            class_ids, confidences, boxes_xyxy = (
                class_ids[best],
                confidences[best],
                boxes_xyxy[best],
            )
        keep = merge(
            class_ids, confidences, boxes_xyxy, iou=self._iou, max_detections=self._max_detections
        )
        on_image = box.to_image(boxes_xyxy[keep])
        # A box that lay wholly in the grey margin has no area left on the image.
        visible = (on_image[:, 2:] > on_image[:, :2]).all(axis=1)
        keep = keep[visible]
        return Detections(class_ids[keep].astype(np.int16), confidences[keep], on_image[visible])


@cache
def _grid(
    input_wh: tuple[int, int], strides: tuple[int, ...], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (cells, 2) in pixels and strides (cells,) of the network's output cells."""
    centres, steps = [], []
    for stride in strides:
        across, down = input_wh[0] // stride, input_wh[1] // stride
        y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
        centres.append((torch.stack((x, y), dim=-1).view(-1, 2) + 0.5) * stride)
        steps.append(torch.full((across * down,), float(stride)))
    return torch.cat(centres).to(device), torch.cat(steps).to(device)


def _checked_digest(weights: Path, expected: str | None) -> str:
    if not weights.is_file():
        raise WeightsError("weights_missing", f"There is no weights file named {weights.name}.")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected.lower():
        raise WeightsError(
            "weights_changed", f"{weights.name} is not the file that was registered."
        )
    return digest


def _load_model(weights: Path, config_dir: Path | None) -> Any:
    with _ultralytics_kept_quiet(config_dir):
        from ultralytics.nn.tasks import torch_safe_load  # heavy, and configured by environment

        try:
            checkpoint, _ = torch_safe_load(str(weights), safe_only=True)
        except Exception as error:  # whatever a damaged or foreign file makes the reader raise
            raise WeightsError(
                "weights_unreadable", f"{weights.name} is no readable checkpoint: {error}"
            ) from error
    model = checkpoint.get("ema") or checkpoint.get("model")
    if type(model).__name__ != "DetectionModel":
        raise WeightsError("weights_unreadable", f"{weights.name} holds no detection model.")
    return model.float()


@contextlib.contextmanager
def _ultralytics_kept_quiet(config_dir: Path | None) -> Iterator[None]:
    """Ultralytics installs nothing, calls nobody, writes only into `config_dir`.

    Importing it also replaces PIL.Image.open (to install HEIC support) and sets
    OMP_NUM_THREADS for children; both are put back.
    """
    folder = config_dir or _default_config_dir()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
        "YOLO_CONFIG_DIR": str(folder),
    }
    opened_by, omp_threads = PIL.Image.open, os.environ.get("OMP_NUM_THREADS")
    os.environ.update(settings)
    try:
        yield
    finally:
        PIL.Image.open = opened_by
        if omp_threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def _default_config_dir() -> Path:
    data_dir = os.environ.get("OD_DATA_DIR")
    return Path(data_dir or tempfile.gettempdir()).resolve() / "ultralytics"


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "fp16"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16; emulated, it is slower than fp32."""
    if platform.system() != "Linux":
        return False
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    # x86 names of AVX-512 and AMX, and the ARM name.
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})

"""YOLOv8 through torch: the only file that imports ultralytics in the service.

Only the network itself is Ultralytics'; resizing, decoding of the boxes and merging are ours,
because their own predictor imports torchvision, decodes boxes in half precision and stops
merging at a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from inference.pipeline.batching import fastest_batch_size
from inference.pipeline.errors import PipelineError, WeightsError
from inference.pipeline.heads import Candidates, decode
from inference.pipeline.layout import View, lay_out
from inference.pipeline.letterbox import PADDING_GREY
from inference.pipeline.options import STRIDES

logger = logging.getLogger(__name__)
_BATCH_SIZES_CPU = (1, 2, 4, 8)
_BATCH_SIZES_CUDA = (8, 16, 32, 64, 128)
_CUDA_LANES = 2  # while one batch is computed, another thread prepares the next one
_IMAGE_CHANNELS = 3


class TorchNetwork:
    """A `network.Network` on a CPU or a CUDA device."""

    runtime = "torch"

    def __init__(
        self, model: Any, *, sha256: str, device: torch.device, precision: str, threads: int
    ) -> None:
        self.sha256 = sha256
        self.class_names: tuple[str, ...] = tuple(model.names[i] for i in range(len(model.names)))
        self.device = str(device)
        self.precision = precision
        self._on_cuda = device.type == "cuda"
        # One thread for each lane: lanes do not wait for each other, and a core that decodes or
        # encodes for a while holds up one of them only.
        self.lanes = _CUDA_LANES if self._on_cuda else threads
        self.batch_size = _BATCH_SIZES_CUDA[0] if self._on_cuda else 1
        self._prepared = threading.local()
        if precision == "fp32":
            # Else CUDA convolves "float32" with the 10 bits of TF32, by which confidences change
            # by 2e-3. It holds for the process; other precisions are not concerned.
            torch.backends.cudnn.allow_tf32 = False
        model = model.fuse(verbose=False).eval().requires_grad_(False)
        # In its training mode the last module returns logits and distances as they are.
        model.model[-1].training = True
        model = model.to(device, memory_format=torch.channels_last)
        self._half = precision == "fp16"
        self._model = model.half() if self._half else model

    def candidates(self, views: Sequence[View], confidence_floor: float) -> list[Candidates]:
        """See `network.Network`. When the memory does not suffice, the batch is halved, and stays
        so for the calls to come; raises PipelineError (`out_of_memory`) when one is too many.
        """
        found: list[Candidates] = []
        while len(found) < len(views):
            part = views[len(found) : len(found) + self.batch_size]
            try:
                logits, distances = self.run_network(self.inputs(part))
                found += decode(
                    logits,
                    distances,
                    input_wh=part[0].part.letterbox.input_wh,
                    confidence_floor=confidence_floor,
                )
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if len(part) <= 1:
                    raise PipelineError(
                        "out_of_memory", "The device's memory does not suffice for one image."
                    ) from error
                # Another lane may have lowered it further while this batch was under way.
                self.batch_size = min(self.batch_size, len(part) // 2)
        return found

    def tune(self, input_wh: tuple[int, int], *, batch_size: int = 0) -> None:
        """See `network.Network`."""
        usual = _BATCH_SIZES_CUDA if self._on_cuda else _BATCH_SIZES_CPU
        sizes = (batch_size,) if batch_size else usual
        self.batch_size = fastest_batch_size(lambda size: self.run_grey(size, input_wh), sizes)

    def run_grey(self, count: int, input_wh: tuple[int, int]) -> None:
        """See `network.Network`."""
        grey = np.full((count, input_wh[1], input_wh[0], 3), PADDING_GREY, np.uint8)
        self.run_network(torch.from_numpy(grey))
        if self._on_cuda:
            torch.cuda.synchronize(self.device)

    def inputs(self, views: Sequence[View]) -> torch.Tensor:
        """What the network sees: RGB (n, height, width, 3), values 0 to 255."""
        if self._on_cuda:
            try:
                return lay_out_on(torch.device(self.device), views)
            except torch.OutOfMemoryError:
                # A photograph may be larger than what the device has left; its inputs are not.
                torch.cuda.empty_cache()
        return torch.from_numpy(lay_out(views))

    def run_network(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (n, classes, cells) and box distances (n, 4 * bins, cells).

        `inputs`: as `inputs` makes them, sides multiples of 32.
        """
        self._prepare_thread()
        with torch.inference_mode(), self._autocast():
            batch = inputs.to(self.device, non_blocking=True)
            # NHWC seen as NCHW is exactly channels_last: no copy is made before the conversion.
            batch = batch.permute(0, 3, 1, 2)
            batch = (batch.half() if self._half else batch.float()) / 255
            raw = self._model(batch)
        return raw["scores"], raw["boxes"]

    def _prepare_thread(self) -> None:
        # The number of OpenMP's threads is a property of the thread that calls.
        if not self._on_cuda and not getattr(self._prepared, "done", False):
            torch.set_num_threads(1)
            self._prepared.done = True

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def lay_out_on(device: torch.device, views: Sequence[View]) -> torch.Tensor:
    """As `layout.lay_out`, on the device: an image is carried there once a batch, as it is.

    Bilinear without antialiasing and rounded, as `cv2.resize`; float32 (n, height, width, 3).
    """
    carried: dict[int, torch.Tensor] = {}
    width, height = views[0].part.letterbox.input_wh
    inputs = torch.full((len(views), height, width, 3), float(PADDING_GREY), device=device)
    for view, target in zip(views, inputs, strict=True):
        (left, top), (right, bottom) = view.part.left_top, view.part.right_bottom
        image = carried.get(id(view.image))
        if image is None:
            pixels = torch.from_numpy(np.ascontiguousarray(view.image))
            if device.type == "cuda":
                pixels = pixels.pin_memory()
            image = carried[id(view.image)] = pixels.to(device, non_blocking=True)
        box = view.part.letterbox
        cut = image[top:bottom, left:right].permute(2, 0, 1)[None].float()
        if (right - left, bottom - top) != box.resized_wh:
            size_hw = box.resized_wh[1], box.resized_wh[0]
            cut = functional.interpolate(cut, size_hw, mode="bilinear", align_corners=False)
        x, y = box.left_top
        target[y : y + box.resized_wh[1], x : x + box.resized_wh[0]] = cut[0].permute(1, 2, 0)
    return inputs.round_()


def prepare(config_dir: Path) -> None:
    """Import what loading needs, so that a process can confine itself before it opens a file."""
    with ultralytics_kept_quiet(config_dir):
        import ultralytics.nn.tasks  # noqa: F401 - heavy, and configured by environment


def load_model(weights: Path, config_dir: Path | None) -> Any:
    """The module of a checkpoint in float32, whose head is one that `heads.decode` reads.

    Raises WeightsError (`weights_unreadable`, `not_a_detector`).
    """
    with ultralytics_kept_quiet(config_dir):
        from ultralytics.nn.tasks import torch_safe_load  # heavy, and configured by environment
        from ultralytics.utils import downloads

        # It opens another file for some names (`yolov5n.pt`) and for a path with an apostrophe, and
        # where that is not there it downloads one.
        downloads.attempt_download_asset = str
        # Without this, Ultralytics loads everything, and says nothing of it.
        if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
            raise WeightsError(
                "weights_unreadable", f"torch {torch.__version__} cannot read weights safely."
            )
        try:
            # By its whole path: a bare name of Ultralytics' own that is damaged would be deleted.
            checkpoint, _ = torch_safe_load(str(weights.absolute()), safe_only=True)
        except MemoryError:
            raise  # the machine's fault and not the file's
        except Exception as error:  # whatever a damaged or foreign file makes the reader raise
            # Its own sentence names a path of this machine, so it is for the log only.
            logger.warning("%s cannot be read: %s", weights, error)
            raise WeightsError(
                "weights_unreadable", f"{weights.name} is no readable checkpoint."
            ) from error
    model = checkpoint.get("ema") or checkpoint.get("model")
    if type(model).__name__ != "DetectionModel":
        raise WeightsError("weights_unreadable", f"{weights.name} holds no detection model.")
    if tuple(int(stride) for stride in model.stride.tolist()) != STRIDES:
        raise WeightsError("weights_unreadable", f"{weights.name} has other strides than YOLOv8.")
    _check_ends(model)
    return model.float()


def _check_ends(model: Any) -> None:
    """Raise WeightsError for a head whose boxes would be misread, or an input other than RGB.

    Later models of Ultralytics call their head the same. That of YOLO26 tells each side of a box
    by one number instead of bins, and one that was trained end to end answers with two of all.
    """
    head = model.model[-1]
    is_yolov8 = (
        type(head).__name__ == "Detect"
        and getattr(head, "reg_max", 1) > 1
        and getattr(head, "one2one_cv2", None) is None
    )
    if not is_yolov8:
        raise WeightsError("not_a_detector", "The model's last part is not that of YOLOv8.")
    channels = next(model.parameters()).shape[1]
    if channels != _IMAGE_CHANNELS:
        raise WeightsError(
            "not_a_detector", f"The model takes pictures of {channels}, not 3 channels."
        )


@contextlib.contextmanager
def ultralytics_kept_quiet(config_dir: Path | None) -> Iterator[None]:
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

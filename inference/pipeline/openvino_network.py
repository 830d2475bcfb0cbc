"""YOLOv8 through OpenVINO, the fastest runtime on x86 CPUs; the only file that imports it.

The graph is made from the same checkpoint at every start (some seconds), so that there is one
weights file and nothing to keep in step. Only the int8 twin is a file: making it takes minutes
and photographs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino.preprocess import PrePostProcessor

from inference.pipeline.batching import fastest_batch_size
from inference.pipeline.errors import WeightsError
from inference.pipeline.heads import Candidates, decode
from inference.pipeline.layout import View, lay_out
from inference.pipeline.letterbox import PADDING_GREY
from inference.pipeline.torch_network import load_model
from inference.pipeline.weights_file import int8_twin

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "bf16"}
_BATCH_SIZES = (1, 2, 4)
# A compiled graph takes about as long to make as ten pictures to look at, and photographs of a
# dataset may have dozens of shapes. Each holds the weights once more, in the layout of its
# processor, and the maps of every lane.
_COMPILED_BYTES = 1_600 * 1024**2
_FEWEST_COMPILED = 2  # a photograph and its tiles
_EXAMPLE_SIDE = 640
_EXAMPLE_SHAPE = (1, 3, 96, 128)
_TWIN_KEY = ("odproject", "weights_sha256")


def load(
    weights: Path, sha256: str, precision: str, threads: int, config_dir: Path | None
) -> OpenVinoNetwork:
    """The network of a checkpoint, or its int8 twin; raises WeightsError."""
    model = load_model(weights, config_dir)
    names = tuple(model.names[i] for i in range(len(model.names)))
    graph = read_twin(weights, sha256) if precision == "int8" else graph_of(model)
    return OpenVinoNetwork(
        graph, class_names=names, sha256=sha256, precision=precision, threads=threads
    )


def graph_of(model: Any) -> ov.Model:
    """The graph of a float32 `DetectionModel`, of any batch and image size.

    Input: RGB uint8 (n, height, width, 3). Outputs: class logits (n, classes, cells) and box
    distances (n, 4 * bins, cells), both float32.
    """
    model = model.fuse(verbose=False).eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it reads
        # Traced here, because OpenVINO has each trace checked by three more: eight seconds.
        example = torch.zeros(_EXAMPLE_SHAPE)
        traced = torch.jit.trace(_RawOutputs(model), example, check_trace=False)
        graph = ov.convert_model(traced, example_input=example)
    graph.reshape([-1, 3, -1, -1])
    return _taking_pictures(graph)


def graph_of_file(path: Path, *, is_open: bool) -> ov.Model:
    """The graph in a file, with an input as that of `graph_of`; raises WeightsError.

    `is_open`: it takes pictures of any size, one at a time.
    """
    try:
        graph = ov.Core().read_model(path)
        if is_open:
            graph.reshape([1, 3, -1, -1])
        return _taking_pictures(graph)
    except RuntimeError as error:
        raise WeightsError("weights_unreadable", f"OpenVINO cannot read {path.name}.") from error


def output_shape_of_file(path: Path, side: int) -> list[int | None]:
    """The sides of what comes out for one square picture, None for those that nothing fixes.

    Nothing is run. Raises WeightsError (`weights_unreadable`, `not_a_detector`).
    """
    try:
        graph = ov.Core().read_model(path)
    except RuntimeError as error:
        raise WeightsError("weights_unreadable", f"OpenVINO cannot read {path.name}.") from error
    try:
        graph.reshape([1, 3, side, side])
    except RuntimeError as error:
        raise WeightsError(
            "not_a_detector", f"The model takes no picture of {side} x {side} pixels."
        ) from error
    shape = graph.output(0).get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [None if one.is_dynamic else one.get_length() for one in shape]


def _taking_pictures(graph: ov.Model) -> ov.Model:
    """The graph with RGB uint8 (n, height, width, 3) as its input."""
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return steps.build()


def write_twin(graph: ov.Model, weights: Path, sha256: str, folder: Path) -> Path:
    """Writes an int8 graph as the twin of a weights file into `folder`; returns its path."""
    graph.set_rt_info(sha256, list(_TWIN_KEY))
    path = folder / int8_twin(weights).name
    ov.save_model(graph, path, compress_to_fp16=True)
    return path


def read_twin(weights: Path, sha256: str) -> ov.Model:
    """The int8 graph that was made from exactly these weights; raises WeightsError."""
    path = int8_twin(weights)
    if not path.is_file():
        raise WeightsError("precision_not_available", f"{weights.name} has no int8 twin.")
    try:
        graph = ov.Core().read_model(path)
        made_from = graph.get_rt_info(list(_TWIN_KEY)).astype(str)
    except RuntimeError as error:
        raise WeightsError("weights_unreadable", f"{path.name} is no int8 twin.") from error
    if made_from != sha256:
        raise WeightsError("weights_changed", f"{path.name} was made from other weights.")
    return graph


class _RawOutputs(torch.nn.Module):
    """The network with its last module's logits and distances as a tuple, which tracing needs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._model.model[-1].training = True  # the tracer has switched it off
        raw = self._model(images)
        return raw["scores"], raw["boxes"]


class OpenVinoNetwork:
    """A `network.Network` on a CPU."""

    runtime = "openvino"
    device = "cpu"

    def __init__(
        self,
        graph: ov.Model,
        *,
        class_names: tuple[str, ...],
        sha256: str,
        precision: str,
        threads: int,
    ) -> None:
        self.class_names = class_names
        self.sha256 = sha256
        self.precision = precision
        # A lane and a stream of OpenVINO's for each thread: none waits for another.
        self.lanes = threads
        self.batch_size = 1
        self._graph = graph
        self._core = ov.Core()
        self._compiled: OrderedDict[tuple[int, ...], Future[_Requests]] = OrderedDict()
        self._weight_bytes, self._pixel_bytes = _weight_bytes(graph), _bytes_a_pixel(graph)
        self._lock = threading.Lock()

    def candidates(self, views: Sequence[View], confidence_floor: float) -> list[Candidates]:
        """See `network.Network`. A short batch runs one by one: no graph is made for its length."""
        size = self.batch_size if len(views) == self.batch_size else 1
        found: list[Candidates] = []
        for start in range(0, len(views), size):
            part = views[start : start + size]
            with self.run_network(lay_out(part)) as (logits, distances):
                found += decode(
                    torch.from_numpy(logits),
                    torch.from_numpy(distances),
                    input_wh=part[0].part.letterbox.input_wh,
                    confidence_floor=confidence_floor,
                )
        return found

    def tune(self, input_wh: tuple[int, int], *, batch_size: int = 0) -> None:
        """See `network.Network`."""
        sizes = (batch_size,) if batch_size else _BATCH_SIZES
        self.batch_size = fastest_batch_size(lambda size: self.run_grey(size, input_wh), sizes)
        with self._lock:
            self._compiled.clear()

    def run_grey(self, count: int, input_wh: tuple[int, int]) -> None:
        """See `network.Network`."""
        grey = np.full((count, input_wh[1], input_wh[0], 3), PADDING_GREY, np.uint8)
        with self.run_network(grey):
            pass

    @contextlib.contextmanager
    def run_network(
        self, inputs: npt.NDArray[np.uint8]
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Class logits and box distances, to be read before the block ends.

        `inputs`: letterboxed RGB images, uint8 (n, height, width, 3), sides multiples of 32.
        """
        with self.infer(inputs) as request:
            yield request.get_output_tensor(0).data, request.get_output_tensor(1).data

    @contextlib.contextmanager
    def infer(self, inputs: npt.NDArray[np.uint8]) -> Iterator[ov.InferRequest]:
        """A request with the outputs for these inputs, which another call may take afterwards."""
        requests = self._requests(inputs.shape)
        with requests.one() as request:
            request.infer({0: inputs}, share_inputs=True)
            yield request

    def _requests(self, shape: tuple[int, ...]) -> _Requests:
        with self._lock:
            found = self._compiled.get(shape)
            is_new = found is None
            if found is None:
                found = self._compiled[shape] = Future()
                while len(self._compiled) > _FEWEST_COMPILED and not self._all_fit():
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(shape)
        if is_new:  # lanes that want this shape wait for it, the others go on
            try:
                found.set_result(_Requests(self._compile(shape)))
            except BaseException as error:
                with self._lock:
                    self._compiled.pop(shape, None)
                found.set_exception(error)
        return found.result()

    def _all_fit(self) -> bool:
        return sum(map(self.held_bytes, self._compiled)) <= _COMPILED_BYTES

    def held_bytes(self, shape: tuple[int, ...]) -> int:
        """About how much memory the graph for inputs (n, height, width, 3) takes."""
        count, height, width, _ = shape
        return self._weight_bytes + int(self.lanes * self._pixel_bytes * count * height * width)

    def _compile(self, shape: tuple[int, ...]) -> ov.CompiledModel:
        # Graphs of fixed shape: a graph of any shape, run with several shapes, ended the process
        # with a damaged heap (OpenVINO 2026.4).
        graph = self._graph.clone()
        graph.reshape(list(shape))
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.lanes,
            "NUM_STREAMS": self.lanes,
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(graph, "CPU", config)


def _weight_bytes(graph: ov.Model) -> int:
    """What a compiled graph takes, about: its numbers as float32, also those stored in less."""
    constants = (node for node in graph.get_ops() if node.get_type_name() == "Constant")
    numbers = sum(int(np.prod(node.get_output_shape(0))) for node in constants)
    return max(4 * numbers, 1)


def _bytes_a_pixel(graph: ov.Model) -> float:
    """What the maps of a lane take, about, for each pixel of the input.

    Two maps of the largest size are there at a time; measured with YOLOv8s and YOLOv8m.
    """
    example = graph.clone()
    if example.is_dynamic():
        example.reshape([1, _EXAMPLE_SIDE, _EXAMPLE_SIDE, 3])
    _, height, width, _ = example.input(0).get_shape()
    maps = (node for node in example.get_ops() if node.get_type_name() != "Constant")
    numbers = max(int(np.prod(out.get_shape())) for node in maps for out in node.outputs())
    return 2 * 4 * numbers / (height * width)


class _Requests:
    """The requests of a compiled graph; one is used by one thread at a time."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._model = compiled
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()

    @contextlib.contextmanager
    def one(self) -> Iterator[ov.InferRequest]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._model.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)

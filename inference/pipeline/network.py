"""Loads the weights of a model version into the runtime that is fastest here.

Never imported by the web process. The vendors live in one file each: `torch_network` (torch and
Ultralytics) and `openvino_network`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch

from inference.pipeline.detector import YoloDetector
from inference.pipeline.errors import DeviceUnavailableError, WeightsError
from inference.pipeline.heads import Candidates
from inference.pipeline.layout import View
from inference.pipeline.options import DetectionOptions, Precision
from inference.pipeline.processor import gains_by_bf16

Runtime = Literal["auto", "torch", "openvino"]
RUNTIMES = get_args(Runtime)


class Network(Protocol):
    """A model version in memory, on one device and at one precision.

    `candidates` may be called by several threads at a time; `lanes` says how many keep the
    device busy, `batch_size` how many inputs a call should bring.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names behind the class ids, in their order."""

    @property
    def sha256(self) -> str:
        """Of the weights file."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0"."""

    @property
    def runtime(self) -> str:
        """What runs it: "torch", "openvino"."""

    @property
    def precision(self) -> str:
        """Of its arithmetic: "fp32", "bf16", "fp16", "int8"."""

    @property
    def lanes(self) -> int:
        """How many threads should call at a time."""

    @property
    def batch_size(self) -> int:
        """How many inputs of one size run fastest in a call."""

    def candidates(self, views: Sequence[View], confidence_floor: float) -> list[Candidates]:
        """Boxes above the floor for each view, in pixels of its input; all have one input size."""

    def tune(self, input_wh: tuple[int, int], *, batch_size: int = 0) -> None:
        """Warms up with inputs of this size, and measures which batch is fastest.

        `batch_size` names one instead, 0 none.
        """

    def run_grey(self, count: int, input_wh: tuple[int, int]) -> None:
        """Runs the bare network on so many grey inputs and waits for the end: for measuring."""


def load_network(
    weights: Path,
    *,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    device: str | None = None,
    threads: int | None = None,
    sha256: str | None = None,
    config_dir: Path | None = None,
) -> Network:
    """A network from an Ultralytics checkpoint, or from an ONNX export of one.

    `precision` "auto" is the fastest that the device computes in, but never int8, which needs the
    twin of the weights that `weights_file.int8_twin` names. `runtime` "auto" is OpenVINO
    on a CPU where it is installed, else torch. `device` as torch names it; CUDA if there is any
    by default, but the CPU for int8. `threads` on a CPU; one for each core by default. `sha256`:
    the digest that the file must have. `config_dir`: where Ultralytics keeps its settings; by
    default a folder in OD_DATA_DIR, or a temporary one. ONNX runs through OpenVINO
    on the CPU, whatever is asked for.

    Only classes that Ultralytics' list of known modules allows are unpickled from the file.
    Raises WeightsError (`weights_missing`, `weights_changed`, `weights_unreadable`,
    `not_a_detector`, `precision_not_available`), DeviceUnavailableError for a device that is not
    there, and ValueError for a runtime that there is not.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"a runtime is one of {', '.join(RUNTIMES)}, not {runtime}")
    digest = _checked_digest(weights, sha256)
    thread_count = threads or len(os.sched_getaffinity(0))
    if weights.suffix == ".onnx":
        from inference.pipeline import onnx_network  # only where it is chosen

        if precision == "auto":
            precision = _best_precision(torch.device("cpu"))
        return onnx_network.load(weights, digest, precision, thread_count)
    if runtime == "openvino" and device is None:
        device = "cpu"
    chosen_device = usable_device(device or _best_device(precision))
    on_cpu = chosen_device.type == "cpu"
    if runtime == "openvino" and not on_cpu:
        raise DeviceUnavailableError(
            "device_unavailable", f"OpenVINO computes on the processor here, not on {device}."
        )
    if precision == "auto":
        precision = _best_precision(chosen_device)
    if runtime == "auto":
        runtime = "openvino" if on_cpu and find_spec("openvino") else "torch"
    if runtime == "openvino":
        from inference.pipeline.openvino_network import load  # only where it is chosen

        return load(weights, digest, precision, thread_count, config_dir)
    if precision == "int8":
        raise WeightsError("precision_not_available", "int8 needs OpenVINO on a CPU.")
    from inference.pipeline.torch_network import TorchNetwork, load_model

    return TorchNetwork(
        load_model(weights, config_dir),
        sha256=digest,
        device=chosen_device,
        precision=precision,
        threads=thread_count,
    )


def load_detector(
    weights: Path,
    *,
    options: DetectionOptions | None = None,
    runtime: Runtime = "auto",
    device: str | None = None,
    threads: int | None = None,
    sha256: str | None = None,
    config_dir: Path | None = None,
) -> YoloDetector:
    """A network with the options of a detection; raises what `load_network` and both raise."""
    chosen = options or DetectionOptions()
    network = load_network(
        weights,
        precision=chosen.precision,
        runtime=runtime,
        device=device,
        threads=threads,
        sha256=sha256,
        config_dir=config_dir,
    )
    return YoloDetector(network, chosen)


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


def fast_precisions() -> tuple[Precision, ...]:
    """The precisions that gain speed on this machine beside fp32, and have a runtime.

    int8 needs the twin of the weights besides.
    """
    if torch.cuda.is_available():
        return "fp32", "bf16", "fp16"
    found: list[Precision] = ["fp32"]
    if gains_by_bf16():
        found.append("bf16")
    if find_spec("openvino"):
        found.append("int8")
    return tuple(found)


def usable_device(name: str) -> torch.device:
    """The device of that name, as torch names it; raises DeviceUnavailableError."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        raise DeviceUnavailableError(
            "device_unavailable", f"There is no device {name} here: {error}"
        ) from error
    return device


def _best_device(precision: Precision) -> str:
    # Jobs in int8 may come to a worker with a graphics card, because others offer them.
    return "cuda" if torch.cuda.is_available() and precision != "int8" else "cpu"


def _best_precision(device: torch.device) -> Precision:
    if device.type == "cuda":
        return "fp16"
    if device.type == "cpu" and gains_by_bf16():
        return "bf16"
    return "fp32"

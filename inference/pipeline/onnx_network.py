"""A YOLOv8 detector from an ONNX file, run by OpenVINO.

An export has its boxes decoded already: (n, 4 + classes, cells), centre and size in pixels of the
input, then a confidence for each class. One that was made for a fixed size gets its pictures with
grey to their right and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.pipeline.errors import WeightsError
from inference.pipeline.heads import MAX_CANDIDATES, Candidates
from inference.pipeline.layout import View, lay_out
from inference.pipeline.letterbox import PADDING_GREY
from inference.pipeline.onnx_file import read_onnx
from inference.pipeline.openvino_network import OpenVinoNetwork, graph_of_file

BOX_NUMBERS = 4
PRECISIONS = ("fp32", "bf16")


def load(weights: Path, sha256: str, precision: str, threads: int) -> OnnxNetwork:
    """The network of an ONNX file; raises WeightsError as `onnx_file.read_onnx`, and
    `precision_not_available`.
    """
    if precision not in PRECISIONS:
        raise WeightsError(
            "precision_not_available", f"ONNX weights run in {' and '.join(PRECISIONS)} only."
        )
    names, image_size, _ = read_onnx(weights)
    return OnnxNetwork(
        graph_of_file(weights, is_open=image_size is None),
        image_size=image_size,
        class_names=tuple(names[class_id] for class_id in range(len(names))),
        sha256=sha256,
        precision=precision,
        threads=threads,
    )


class OnnxNetwork(OpenVinoNetwork):
    """A `network.Network` on a CPU, one input at a time in each lane."""

    def __init__(self, graph: object, *, image_size: int | None, **facts: object) -> None:
        super().__init__(graph, **facts)  # type: ignore[arg-type]
        self._image_size = image_size

    def candidates(self, views: Sequence[View], confidence_floor: float) -> list[Candidates]:
        """See `network.Network`.

        Raises WeightsError (`input_too_large`) for inputs larger than an export of a fixed size
        takes.
        """
        found = []
        for view in views:
            inputs = self._fitted(lay_out([view]))
            with self.infer(inputs) as request:
                found.append(_decoded(request.get_output_tensor(0).data[0], confidence_floor))
        return found

    def tune(self, input_wh: tuple[int, int], *, batch_size: int = 0) -> None:
        """Warms up; more than one input at a time does not pay."""
        side = self._image_size
        self.run_grey(1, input_wh if side is None else (side, side))

    def run_grey(self, count: int, input_wh: tuple[int, int]) -> None:
        """See `network.Network`."""
        grey = np.full((1, input_wh[1], input_wh[0], 3), PADDING_GREY, np.uint8)
        for _ in range(count):
            with self.infer(self._fitted(grey)):
                pass

    def _fitted(self, inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The inputs (1, height, width, 3), made as large as a fixed size wants them."""
        side = self._image_size
        if side is None:
            return inputs
        height, width = inputs.shape[1:3]
        if max(height, width) > side:
            raise WeightsError(
                "input_too_large", f"These weights take pictures of {side} pixels at most."
            )
        return np.pad(
            inputs,
            ((0, 0), (0, side - height), (0, side - width), (0, 0)),
            constant_values=PADDING_GREY,
        )


def _decoded(output: npt.NDArray[np.float32], confidence_floor: float) -> Candidates:
    """Candidates from (4 + classes, cells)."""
    scores = output[BOX_NUMBERS:]
    class_ids = scores.argmax(axis=0)
    confidences = scores[class_ids, np.arange(scores.shape[1])]
    keep = confidences > confidence_floor
    centres, sizes = output[:2, keep].T, output[2:BOX_NUMBERS, keep].T
    boxes_xyxy = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
    return Candidates.whole(
        class_ids[keep].astype(np.int64),
        np.clip(confidences[keep], 0, 1),
        np.ascontiguousarray(boxes_xyxy),
    ).best(MAX_CANDIDATES)

"""Looks into an ONNX file without running it: the only file that imports onnx.

What is taken is a YOLOv8 detector as Ultralytics exports it: one picture goes in, one tensor
(1, 4 + classes, cells) comes out, and the metadata name the classes. The file itself may leave
open what comes out, so OpenVINO, which runs it later, works out its sides. Everything is in the
one file, and every operator is of ONNX itself, so that no other file and no library is loaded by
whatever runs it later.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from inference.pipeline.errors import WeightsError
from inference.pipeline.options import MAX_IMAGE_SIZE_PIXELS, MIN_IMAGE_SIZE_PIXELS, STRIDES

OWN_DOMAINS = frozenset({"", "ai.onnx"})
IMAGE_CHANNELS = 3
INPUT_AXES = 4  # picture, channel, row, column
OUTPUT_AXES = 3  # picture, box and classes, cell
BOX_NUMBERS = 4


def read_onnx(path: Path) -> tuple[dict[int, str], int | None, int]:
    """Class names by id, the input's side where it is fixed (pixels), and the parameter count.

    Raises WeightsError (`weights_unreadable`, `weights_unsafe`, `not_a_detector`).
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors, which it does not name
        raise WeightsError("weights_unreadable", "The file is no ONNX model.") from error
    _check_self_contained(model)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError("weights_unreadable", f"The model is not sound: {reason}") from error
    properties = {one.key: one.value for one in model.metadata_props}
    _check_kind(properties)
    names = _class_names(properties)
    image_size = _fixed_image_size(model)
    _check_output(model, path, len(names), image_size)
    parameters = sum(_size(tensor.dims) for tensor in model.graph.initializer)
    return names, image_size, parameters


def _check_self_contained(model: Any) -> None:
    domains = {node.domain for node in model.graph.node}
    domains |= {one.domain for one in model.opset_import}
    if foreign := sorted(domains - OWN_DOMAINS):
        raise WeightsError(
            "weights_unsafe", f"The model uses operators that are not ONNX's own: {foreign[0]}."
        )
    if model.functions or model.training_info:
        raise WeightsError("weights_unsafe", "The model brings functions of its own.")
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise WeightsError("weights_unsafe", f"The model has a graph within {node.op_type}.")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise WeightsError("weights_unsafe", "The model keeps its weights in other files.")


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _check_kind(properties: dict[str, str]) -> None:
    """Refuse what tells of itself that its boxes are not a YOLOv8 detector's, one for each cell."""
    if properties.get("task", "detect") != "detect":
        raise WeightsError("not_a_detector", f"The model is made for {properties['task']!r}.")
    arguments = _literal(properties.get("args", ""))
    merges = arguments.get("nms") if isinstance(arguments, dict) else None
    if merges is True or "True" in (properties.get("end2end"), properties.get("nms")):
        raise WeightsError(
            "not_a_detector",
            "The model merges its boxes itself; export it without end2end or nms.",
        )
    largest = str(STRIDES[-1])
    if properties.get("stride", largest) != largest:
        raise WeightsError(
            "not_a_detector",
            f"The model's largest stride is {properties['stride']}, not {largest} as of YOLOv8.",
        )


def _class_names(properties: dict[str, str]) -> dict[int, str]:
    try:
        names = _literal(properties.get("names", ""))
        return {int(class_id): str(name) for class_id, name in names.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise WeightsError(
            "not_a_detector", "The model's metadata do not name its classes."
        ) from error


def _literal(text: str) -> Any:
    """What the metadata write as Python does, None where it is nothing of the kind."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError):
        return None
    except RecursionError as error:
        raise WeightsError("weights_unreadable", "The metadata are nested too deeply.") from error


def _shape(value: Any) -> list[int | None]:
    """The sides of a tensor, None for those that are left open."""
    return [one.dim_value or None for one in value.type.tensor_type.shape.dim]


def _size(dims: Any) -> int:
    size = 1
    for side in dims:
        size *= side
    return size


def _fixed_image_size(model: Any) -> int | None:
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in initialised]
    shape = _shape(inputs[0]) if len(inputs) == 1 else []
    if len(shape) != INPUT_AXES or shape[0] not in (1, None) or shape[1] != IMAGE_CHANNELS:
        raise WeightsError("not_a_detector", "The model's input is not one picture (1, 3, h, w).")
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise WeightsError("not_a_detector", "The model's input must be of 32-bit floats.")
    height, width = shape[2:]
    if height is None and width is None:
        return None
    if height != width or not height or height % STRIDES[-1]:
        raise WeightsError(
            "not_a_detector",
            "The model's input must be square with sides that are a multiple of 32, or left open.",
        )
    # No detection could ask for it: its options know these sizes only.
    if not MIN_IMAGE_SIZE_PIXELS <= height <= MAX_IMAGE_SIZE_PIXELS:
        raise WeightsError(
            "not_a_detector",
            f"The model's input has a side of {height} pixels; it must have "
            f"{MIN_IMAGE_SIZE_PIXELS} to {MAX_IMAGE_SIZE_PIXELS}, or be left open.",
        )
    return height


def _check_output(model: Any, path: Path, class_count: int, image_size: int | None) -> None:
    """Refuse another output than one box for each cell, as it says and as it really is."""
    outputs = list(model.graph.output)
    channels = BOX_NUMBERS + class_count
    side = image_size or MIN_IMAGE_SIZE_PIXELS  # where any will do, the smallest is soonest done
    cells = sum((side // one) ** 2 for one in STRIDES)
    shape = _shape(outputs[0]) if len(outputs) == 1 else []
    fits = (
        len(shape) == OUTPUT_AXES
        and shape[0] in (1, None)
        and shape[1] in (channels, None)
        and (image_size is None or shape[2] in (cells, None))
    )
    if fits:
        from inference.pipeline.openvino_network import output_shape_of_file  # only for ONNX

        shape = output_shape_of_file(path, side)
        fits = shape == [1, channels, cells]
    if not fits:
        raise WeightsError(
            "not_a_detector",
            f"The model's output is {shape}, not (1, {channels}, cells) as of a YOLOv8 detector "
            f"of {class_count} classes.",
        )

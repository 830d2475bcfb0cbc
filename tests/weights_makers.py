"""Weights for tests: tiny real checkpoints, ONNX graphs, and files that mean harm."""

import os
import pickle
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from inference.pipeline.torch_network import prepare

CLASSES = ("car", "boat")
IMAGE_SIZE = 160
CELLS = 20 * 20 + 10 * 10 + 5 * 5


def tiny_model(
    tmp_path: Path, kind: str = "DetectionModel", names=CLASSES, *, channels=3, **changes
):
    """A YOLOv8 of a sixteenth of the usual width, untrained; `kind` as Ultralytics names it.

    `changes` are of its configuration, such as those with which Ultralytics makes YOLO26's head.
    """
    prepare(tmp_path / "ultralytics")
    from ultralytics.nn import tasks

    files = {"DetectionModel": "yolov8n.yaml", "SegmentationModel": "yolov8n-seg.yaml"}
    config = tasks.yaml_model_load(files[kind])
    config |= {"scales": {"n": [0.33, 0.0625, 256]}, **changes}
    model = getattr(tasks, kind)(config, ch=channels, nc=len(names), verbose=False)
    model.names = dict(enumerate(names))
    return model.half()


def write_checkpoint(path: Path, model: object) -> Path:
    torch.save({"model": model, "ema": None, "epoch": 1}, path)
    return path


class Evil:
    """Unpickled, it makes a file: what a pickle that means harm could do to the whole machine."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self._marker}'",)


class EvilByExec(Evil):
    """The same by a built-in function."""

    def __reduce__(self):
        return exec, (f"open({str(self._marker)!r}, 'w').close()",)


def write_evil_pickle(path: Path, evil: Evil) -> Path:
    path.write_bytes(pickle.dumps(evil))
    return path


def onnx_model(**changes):
    """A sound detector of two classes whose output is always the same; `changes` spoil it."""
    channels = 4 + len(CLASSES)
    given = {
        "input_shape": [1, 3, IMAGE_SIZE, IMAGE_SIZE],
        "output_shape": [1, channels, CELLS],
        "names": str(dict(enumerate(CLASSES))),
        "task": "detect",
        "domain": "",
        "outputs": 1,
    } | changes
    size = channels * CELLS
    constant = helper.make_tensor("answer", TensorProto.FLOAT, [1, channels, CELLS], [0.0] * size)
    nodes = [helper.make_node("Identity", ["answer"], ["output0"], domain=given["domain"])]
    nodes += given.get("nodes", [])
    outputs = [
        helper.make_tensor_value_info("output0", TensorProto.FLOAT, given["output_shape"])
    ] * given["outputs"]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, given["input_shape"])
    graph = helper.make_graph(nodes, "detector", [images], outputs, initializer=[constant])
    opsets = [helper.make_opsetid("", 17)]
    if given["domain"]:
        opsets.append(helper.make_opsetid(given["domain"], 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    properties = {key: given[key] for key in ("names", "task") if given[key] is not None}
    helper.set_model_props(model, properties)
    return model


def write_onnx(path: Path, model=None) -> Path:
    onnx.save_model(model or onnx_model(), str(path))
    return path

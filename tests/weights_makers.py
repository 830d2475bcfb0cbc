"""Weights for tests: tiny real checkpoints, ONNX graphs, and files that mean harm."""

import math
import os
import pickle
import warnings
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
        "answer_shape": [1, channels, CELLS],
    } | changes
    size = math.prod(given["answer_shape"])
    constant = helper.make_tensor("answer", TensorProto.FLOAT, given["answer_shape"], [0.0] * size)
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
    keys = ("names", "task", "args", "end2end", "nms", "stride")
    properties = {key: given[key] for key in keys if given.get(key) is not None}
    helper.set_model_props(model, properties)
    return model


def export_onnx(path: Path, model) -> Path:
    """A checkpoint's model as Ultralytics exports it for pictures of any size."""
    head = model.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", True
    sides = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 2: "anchors"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it reads
        torch.onnx.export(
            model.float().eval(),
            torch.zeros(1, 3, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE),
            str(path),
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes=sides,
            opset_version=17,
            dynamo=False,
        )
    exported = onnx.load_model(str(path))
    helper.set_model_props(exported, {"names": str(model.names), "task": "detect", "stride": "32"})
    return write_onnx(path, exported)


def write_onnx(path: Path, model=None) -> Path:
    onnx.save_model(model or onnx_model(), str(path))
    return path

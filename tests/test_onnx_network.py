"""ONNX exports find what they say, through OpenVINO."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.pipeline.errors import WeightsError
from inference.pipeline.network import load_detector, load_network
from inference.pipeline.options import DetectionOptions
from tests.weights_makers import CELLS, CLASSES, IMAGE_SIZE, onnx_model, write_onnx

ROWS = 4 + len(CLASSES)


def finder(*, is_open: bool = False):
    """A detector that finds one boat whose confidence is the brightness of the picture.

    The box is the same for every picture: centre (20, 16), size 8 x 4.
    """
    fixed = np.zeros((1, ROWS, CELLS), np.float32)
    fixed[0, :4, 5] = (20, 16, 8, 4)
    chosen = np.zeros((1, ROWS, CELLS), np.float32)
    chosen[0, 5, 5] = 1
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [1, ROWS, CELLS], values.ravel().tolist())
        for name, values in (("boxes", fixed), ("chosen", chosen))
    ]
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["chosen", "brightness"], ["scores"]),
        helper.make_node("Add", ["boxes", "scores"], ["output0"]),
    ]
    sides = ["height", "width"] if is_open else [IMAGE_SIZE, IMAGE_SIZE]
    model = onnx_model(input_shape=[1, 3, *sides])
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    return model


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("size_wh", [(160, 160), (160, 96), (32, 160)])
def test_boxes_come_back_in_pixels_of_the_picture(tmp_path, is_open, size_wh):
    path = write_onnx(tmp_path / "finder.onnx", finder(is_open=is_open))
    options = DetectionOptions(precision="fp32", image_size=IMAGE_SIZE)
    detector = load_detector(path, options=options, threads=1)
    assert detector.class_names == CLASSES
    found = detector.detect([np.full((size_wh[1], size_wh[0], 3), 204, np.uint8)])[0]
    assert found.class_ids.tolist() == [1]
    np.testing.assert_allclose(found.confidences, [0.8], atol=1e-3)
    np.testing.assert_allclose(found.boxes_xyxy, [[16, 14, 24, 18]], atol=0.01)


def test_network_tells_what_runs_it(tmp_path):
    path = write_onnx(tmp_path / "finder.onnx", finder())
    network = load_network(path, precision="fp32", threads=2)
    assert (network.runtime, network.device, network.precision) == ("openvino", "cpu", "fp32")
    assert (network.lanes, network.batch_size) == (2, 1)
    network.tune((768, 768))  # a fixed size is not exceeded


def test_precisions_that_onnx_does_not_have(tmp_path):
    path = write_onnx(tmp_path / "finder.onnx", finder())
    for precision in ("fp16", "int8"):
        with pytest.raises(WeightsError, match="ONNX weights run in fp32 and bf16 only"):
            load_network(path, precision=precision)


def test_picture_larger_than_a_fixed_input_is_refused(tmp_path):
    path = write_onnx(tmp_path / "finder.onnx", finder())
    detector = load_detector(path, options=DetectionOptions(precision="fp32"), threads=1)
    with pytest.raises(WeightsError, match="take pictures of 160 pixels at most"):
        detector.detect([np.zeros((300, 300, 3), np.uint8)])


def test_file_is_looked_at_again_before_it_is_run(tmp_path: Path):
    model = finder()
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    onnx.save_model(model, str(tmp_path / "evil.onnx"))
    with pytest.raises(WeightsError) as refusal:
        load_network(tmp_path / "evil.onnx", precision="fp32")
    assert refusal.value.code == "weights_unsafe"

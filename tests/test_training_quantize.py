"""What of a network stays as it is in the int8 twin."""

import re

import pytest

from inference.pipeline.openvino_network import graph_of
from inference.pipeline.torch_network import load_model, prepare
from inference.training.quantize import last_convolutions
from tests.weights_makers import CLASSES, write_checkpoint


@pytest.mark.parametrize(("design", "layer_count"), [("yolov8n", 23), ("yolo11n", 24)])
def test_last_convolutions_of_the_head_stay_whatever_the_design(tmp_path, design, layer_count):
    prepare(tmp_path / "ultralytics")
    from ultralytics.nn import tasks

    config = tasks.yaml_model_load(f"{design}.yaml") | {"scales": {"n": [0.33, 0.0625, 256]}}
    built = tasks.DetectionModel(config, nc=len(CLASSES), verbose=False)
    built.names = dict(enumerate(CLASSES))
    model = load_model(write_checkpoint(tmp_path / "tiny.pt", built.half()), None)
    assert len(model.model) == layer_count
    nodes = [
        node.get_friendly_name()
        for node in graph_of(model).get_ops()
        if node.get_type_name() == "Convolution"
    ]
    kept = [name for name in nodes if re.match(last_convolutions(layer_count), name)]
    places = [re.search(r"cv[23]\.\d\.\d", name)[0] for name in kept]
    assert sorted(places) == ["cv2.0.2", "cv2.1.2", "cv2.2.2", "cv3.0.2", "cv3.1.2", "cv3.2.2"]

"""What the tests of training share: little pictures whose vehicles are known, a little network."""

import numpy as np

from inference.pipeline.torch_network import ultralytics_kept_quiet
from inference.training.data import CLASS_NAMES, Picture, Sources, picture_of

GREY = 90


def street(seed: int = 0, size_wh: tuple[int, int] = (200, 160)) -> Picture:
    """Grey ground with four bright upright vehicles, one of each class."""
    rng = np.random.default_rng(seed)
    image = rng.integers(GREY - 5, GREY + 5, (size_wh[1], size_wh[0], 3)).astype(np.uint8)
    boxes = np.array(
        [[20, 20, 50, 34], [80, 30, 92, 58], [120, 90, 180, 110], [40, 100, 76, 116]], np.float32
    )
    for left, top, right, bottom in boxes.astype(int):
        image[top:bottom, left:right] = 250
    return picture_of(f"street-{seed}", image, boxes, np.arange(4))


def sources() -> Sources:
    """Two labelled pictures, one drawn one and one without vehicles."""
    empty = picture_of("empty", np.full((120, 120, 3), GREY, np.uint8))
    return Sources((street(0), street(1)), (street(2),), (empty,))


def small_network(width: float = 0.125, depth: float = 0.33):
    """A YOLOv8 that is narrower than any on offer, with weights that are the same each time."""
    import torch

    with ultralytics_kept_quiet(None):
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    plan = yaml_model_load("yolov8n.yaml")
    plan["scales"] = {"n": [depth, width, 1024]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = DetectionModel(plan, nc=len(CLASS_NAMES), verbose=False)
    model.names = dict(enumerate(CLASS_NAMES))
    return model

"""What faster arithmetic may cost: average precision on drawn streets, against fp32."""

import functools
from pathlib import Path

import numpy as np
import pytest

from inference.evaluation.data import LabelledImage
from inference.evaluation.metrics import score
from inference.pipeline.errors import WeightsError
from inference.pipeline.network import load_detector
from inference.pipeline.options import DetectionOptions
from inference.scenes import Scene, draw_scene
from tests.pipeline_fakes import WEIGHTS

SIZE_WH = (416, 256)
SIDE = max(SIZE_WH)
MOST_THAT_MAY_BE_LOST = {"bf16": 0.01, "fp16": 0.01, "int8": 0.01}


@functools.cache
def streets() -> list[Scene]:
    return [draw_scene(seed, SIZE_WH, 5, input_size=SIDE) for seed in range(500, 508)]


def average_precisions(precision: str, runtime: str = "auto") -> dict[str, float]:
    options = DetectionOptions(precision=precision, image_size=SIDE, confidence_floor=0.001)
    detector = load_detector(WEIGHTS, device="cpu", runtime=runtime, options=options)
    assert detector.precision == precision
    found = detector.detect([street.image for street in streets()])
    labelled = [
        LabelledImage(
            path=Path(f"{index}.png"),
            class_ids=np.zeros(len(street.boxes_xyxy), np.int64),
            boxes_xywh=np.concatenate(
                (street.boxes_xyxy[:, :2], street.boxes_xyxy[:, 2:] - street.boxes_xyxy[:, :2]), 1
            ).astype(np.float64),
            is_relative=False,
        )
        for index, street in enumerate(streets())
    ]
    scores = score(labelled, [SIZE_WH] * len(labelled), found, detector.class_names)
    return {"ap": scores.class_agnostic.ap, "ap_50": scores.class_agnostic.ap_50}


@pytest.fixture(scope="module")
def reference() -> dict[str, float]:
    figures = average_precisions("fp32", "torch")
    assert figures["ap_50"] > 0.9
    return figures


def test_openvino_loses_nothing_in_full_precision(reference):
    assert average_precisions("fp32", "openvino") == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize(
    ("precision", "runtime"), [("bf16", "torch"), ("bf16", "openvino"), ("fp16", "torch")]
)
def test_half_the_bits_cost_at_most_a_hundredth(reference, precision, runtime):
    figures = average_precisions(precision, runtime)
    assert figures["ap_50"] >= reference["ap_50"] - MOST_THAT_MAY_BE_LOST[precision]
    assert figures["ap"] >= reference["ap"] - MOST_THAT_MAY_BE_LOST[precision]


def test_int8_costs_at_most_a_point_of_map50(reference):
    try:
        figures = average_precisions("int8")
    except WeightsError as error:
        assert error.code == "precision_not_available"
        pytest.skip("these weights have no int8 twin")
    assert figures["ap_50"] >= reference["ap_50"] - MOST_THAT_MAY_BE_LOST["int8"]

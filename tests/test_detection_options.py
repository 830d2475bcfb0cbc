"""What a caller may choose about a detection, and what is refused."""

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.pipeline.options import DetectionOptions, OptionsError, Tiling

FITTING = st.fixed_dictionaries(
    {},
    optional={
        "confidence_floor": st.floats(0.001, 0.999),
        "iou": st.floats(0.01, 1),
        "merge": st.sampled_from(["auto", "nms", "nmm", "vote"]),
        "metric": st.sampled_from(["iou", "ios"]),
        "one_class_per_object": st.booleans(),
        "image_size": st.integers(5, 64).map(lambda count: 32 * count),
        "class_names": st.none()
        | st.lists(st.sampled_from(["car", "bus", "Straßenbahn"]), min_size=1, max_size=3),
        "tiling": st.sampled_from(["off", "auto"])
        | st.fixed_dictionaries(
            {"tile": st.integers(160, 2048)}, optional={"overlap": st.floats(0, 0.5)}
        ),
        "max_detections": st.integers(1, 500),
        "frame_stride": st.integers(1, 10_000),
        "tracking": st.booleans(),
        "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16", "int8"]),
    },
)
LEAVES = st.sampled_from(
    [None, True, 0, 1, -1, 640, 10**40, 0.5, -0.1, 1e300, "", "off", "auto", "nms", "fp32", "car"]
)
JSON_VALUES = (
    LEAVES
    | st.lists(LEAVES, max_size=3)
    | st.dictionaries(st.sampled_from(["tile", "overlap", "x"]), LEAVES)
)


def faults_of(raw):
    with pytest.raises(OptionsError) as caught:
        DetectionOptions.parse(raw)
    return [(fault.field, fault.code) for fault in caught.value.faults]


def test_nothing_chosen_gives_the_defaults():
    assert DetectionOptions.parse({}) == DetectionOptions()


def test_what_is_not_chosen_is_as_in_the_defaults_of_the_model():
    of_model = DetectionOptions(image_size=1280, tiling="auto")
    chosen = DetectionOptions.parse({"tiling": {"tile": 512}}, defaults=of_model)
    assert (chosen.image_size, chosen.tiling) == (1280, Tiling(512, 0.2))


@given(FITTING)
def test_options_come_back_from_json_as_they_were(raw):
    options = DetectionOptions.parse(raw)
    assert DetectionOptions.parse(json.loads(json.dumps(options.as_json()))) == options
    for name, value in raw.items():
        if name not in ("class_names", "tiling"):
            assert getattr(options, name) == value


@given(st.sampled_from([field.name for field in fields(DetectionOptions)]), JSON_VALUES)
def test_any_json_value_is_taken_or_refused_by_name(name, value):
    try:
        DetectionOptions.parse({name: value})
    except OptionsError as error:
        assert [fault.field for fault in error.faults] == [name]
        assert error.faults[0].detail.endswith(".")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence_floor", 0),
        ("confidence_floor", 1),
        ("confidence_floor", "0.5"),
        ("confidence_floor", True),
        ("iou", 0),
        ("iou", 1.01),
        ("iou", float("nan")),
        ("merge", "wbf"),
        ("metric", "giou"),
        ("one_class_per_object", "yes"),
        ("image_size", 650),
        ("image_size", 128),
        ("image_size", 2080),
        ("image_size", 640.0),
        ("class_names", []),
        ("class_names", "car"),
        ("class_names", [1]),
        ("class_names", ["x" * 101]),
        ("class_names", ["car\0"]),
        ("class_names", ["\ud800"]),
        ("class_names", ["car"] * 101),
        ("tiling", "on"),
        ("tiling", {}),
        ("tiling", {"overlap": 0.2}),
        ("tiling", {"tile": 100}),
        ("tiling", {"tile": 640, "overlap": 0.6}),
        ("tiling", {"tile": 640, "stride": 2}),
        ("max_detections", 0),
        ("max_detections", 501),
        ("frame_stride", 0),
        ("frame_stride", 10_001),
        ("tracking", 1),
        ("precision", "fp8"),
    ],
)
def test_value_that_cannot_be_used_is_refused_with_its_name(name, value):
    assert faults_of({name: value}) == [(name, "invalid")]


def test_every_field_at_fault_is_named_at_once():
    assert faults_of({"iou": 2, "image_size": 1}) == [("iou", "invalid"), ("image_size", "invalid")]


def test_unknown_option_is_refused_rather_than_ignored():
    assert faults_of({"conf": 0.5, "iou": 0.5}) == [("conf", "unknown")]

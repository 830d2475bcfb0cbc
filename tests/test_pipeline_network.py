"""The network finds what Ultralytics' own steps find, on images of any size."""

import hashlib
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from datasets.media.video import iter_frames
from inference.pipeline.batching import fastest_batch_size
from inference.pipeline.detector import YoloDetector
from inference.pipeline.encode import VideoWriter
from inference.pipeline.errors import DeviceUnavailableError, PipelineError, WeightsError
from inference.pipeline.heads import Candidates
from inference.pipeline.layout import View, lay_into, lay_out
from inference.pipeline.letterbox import Letterbox, clipped
from inference.pipeline.network import load_detector, load_network
from inference.pipeline.options import DetectionOptions, OptionsError, Tiling
from inference.pipeline.run import process_video
from inference.pipeline.tiles import plan
from inference.pipeline.torch_network import lay_out_on
from inference.scenes import draw_scene, draw_video_scene, match_boxes
from tests.pipeline_fakes import (
    REPOSITORY,
    WEIGHTS,
    digest_on_the_card,
    real_detector,
    shared_data,
    small_detector,
)


class StillNetwork:
    """What a detector asks of a network; candidates come from those that extend it."""

    class_names = ("car",)
    sha256 = "0" * 64
    device = "cpu"
    runtime = "none"
    precision = "fp32"
    lanes = 1
    batch_size = 1


SIZES_WH = [(320, 180), (181, 320), (640, 640), (33, 97), (1, 1), (1000, 3)]


def as_ultralytics_finds(image, *, confidence, iou):
    """Ultralytics' own letterbox, decoding, suppression and scaling around the same weights."""
    detector = real_detector()
    from ultralytics.data.augment import LetterBox
    from ultralytics.nn.tasks import torch_safe_load
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    model = torch_safe_load(str(WEIGHTS), safe_only=True)[0]["model"].float().eval()
    fitted = LetterBox(detector.image_size, auto=True, stride=32)(image=image)
    inputs = torch.from_numpy(fitted.transpose(2, 0, 1)[None].copy()).float() / 255
    with torch.inference_mode():
        raw = model(inputs)[0]
    found = non_max_suppression(raw, conf_thres=confidence, iou_thres=iou, max_det=500)[0]
    return scale_boxes(fitted.shape[:2], found[:, :4], image.shape[:2]).numpy(), found[:, 4:]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_detections_are_those_of_ultralytics_own_steps(runtime):
    image = draw_scene(1).image
    boxes, rest = as_ultralytics_finds(image, confidence=0.05, iou=0.5)
    detector = load_detector(WEIGHTS, runtime=runtime, options=DetectionOptions(precision="fp32"))
    assert detector.network.runtime == runtime
    found = detector.detect([image])[0]
    assert len(found) == len(boxes) >= 10
    np.testing.assert_allclose(found.confidences, rest[:, 0], atol=1e-4)
    np.testing.assert_array_equal(found.class_ids, rest[:, 1])
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=0.05)


def test_frames_of_a_video_are_found_as_by_ultralytics_own_steps(tmp_path):
    scenes = draw_video_scene(3, 4, (960, 540), 8)
    with VideoWriter(tmp_path / "street.mp4", (960, 540)) as writer:
        for index, scene in enumerate(scenes):
            writer.write(scene.image, index / 25)
    options = DetectionOptions(precision="fp32", confidence_floor=0.25, iou=0.7)
    detector, results = YoloDetector(real_detector().network, options), []
    process_video(tmp_path / "street.mp4", detector, annotated=None, on_frames=results.extend)
    assert len(results) == 4
    for frame, result in zip(iter_frames(tmp_path / "street.mp4"), results, strict=True):
        boxes, rest = as_ultralytics_finds(frame.image, confidence=0.25, iou=0.7)
        assert len(result.detections) == len(boxes) >= 6
        np.testing.assert_allclose(result.detections.confidences, rest[:, 0], atol=1e-3)
        np.testing.assert_allclose(result.detections.boxes_xyxy, boxes, atol=0.5)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_letterbox_is_that_of_ultralytics(size_wh):
    real_detector()  # sets Ultralytics' environment before its first import
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.ops import scale_boxes

    image = np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), np.uint8)
    box = Letterbox.fit(size_wh, 320)
    target = np.empty((box.input_wh[1], box.input_wh[0], 3), np.uint8)
    lay_into(box, image, target)
    np.testing.assert_array_equal(target, LetterBox(320, auto=True, stride=32)(image=image))
    boxes = np.random.default_rng(1).uniform(-9, 330, (20, 4)).astype(np.float32)
    expected = scale_boxes(target.shape[:2], boxes.copy(), image.shape[:2])
    found = clipped(box.to_image(boxes), size_wh)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_picture_so_narrow_that_it_would_vanish_keeps_one_row_or_column():
    assert Letterbox.fit((1000, 1), 320).resized_wh == (320, 1)
    assert Letterbox.fit((1, 1000), 320).resized_wh == (1, 320)


def test_boxes_are_clipped_to_the_image_after_they_suppressed_each_other():
    """Cut off at the border two neighbours overlap by half, as they are by a third only."""
    real_detector()  # sets Ultralytics' environment before its first import
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    boxes = np.array([[-60, 100, 20, 160], [-12, 100, 30, 160], [-90, 0, -10, 60]], np.float32)
    confidences = np.array([0.9, 0.8, 0.7], np.float32)

    class TwoNeighboursAndOneOutside(StillNetwork):
        def candidates(self, views, floor):
            return [Candidates.whole(np.zeros(3, np.int64), confidences, boxes) for _ in views]

    options = DetectionOptions(image_size=640, one_class_per_object=False, iou=0.5)
    detector = YoloDetector(TwoNeighboursAndOneOutside(), options)
    (found,) = detector.detect([np.zeros((640, 640, 3), np.uint8)])
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 100, 20, 160], [0, 100, 30, 160]])
    rows = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    raw = torch.from_numpy(np.concatenate((rows, confidences[:, None]), 1).T[None].copy())
    expected = scale_boxes((640, 640), non_max_suppression(raw, 0.05, 0.5)[0][:, :4], (640, 640))
    has_area = (expected[:, 2:] > expected[:, :2]).all(1)
    np.testing.assert_array_equal(found.boxes_xyxy, expected[has_area])


def test_images_of_mixed_sizes_are_found_as_if_alone():
    detector = small_detector()
    scene = draw_scene(2, (640, 360), 8, input_size=320).image
    images = [scene, scene[:200, :250], np.zeros((1, 1, 3), np.uint8), scene, scene[::-1, :150]]
    together = detector.detect(images)
    alone = [detector.detect([image])[0] for image in images]
    assert [len(found) for found in together] == [len(found) for found in alone]
    assert len(together[0]) > 0
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=0.05)


def test_no_images_give_no_detections():
    assert real_detector().detect([]) == []


def test_boxes_lie_within_the_image_and_above_the_floor():
    image = draw_scene(3).image[:, :777]
    found = real_detector().detect([image])[0]
    assert len(found) > 0
    assert found.boxes_xyxy.min() >= 0
    assert found.boxes_xyxy[:, 2].max() <= 777
    assert found.boxes_xyxy[:, 3].max() <= 720
    assert found.confidences.min() >= 0.05
    assert (np.diff(found.confidences) <= 0).all()


def test_detector_describes_itself():
    detector = real_detector()
    assert detector.class_names == ("car", "truck", "bus", "minibus")
    assert (detector.device, detector.precision) == ("cpu", "fp32")
    assert detector.sha256 == digest_on_the_card(WEIGHTS)


@pytest.mark.parametrize("name", ["YOLO8s_FSR", "YOLO8m_FSR"])
def test_model_cards_name_the_weights_that_lie_beside_them(name):
    weights = WEIGHTS.with_name(f"{name}.pt")
    assert digest_on_the_card(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_reduced_precision_on_the_cpu_finds_the_same_vehicles(runtime):
    scene = draw_scene(4)
    detector = load_detector(WEIGHTS, runtime=runtime, options=DetectionOptions(precision="bf16"))
    found = detector.detect([scene.image])[0].above(0.25)
    in_full = real_detector().detect([scene.image])[0].above(0.25)
    assert detector.precision == "bf16"
    matched, extra = match_boxes(in_full.boxes_xyxy, found.boxes_xyxy, iou=0.8)
    assert matched >= 9
    assert extra <= 1


@pytest.mark.parametrize(("precision", "may_round"), [("fp32", False), ("bf16", True)])
def test_only_full_precision_forbids_a_graphics_card_to_round(monkeypatch, precision, may_round):
    """TF32 has 10 bits; torch allows it by default, and another part of the process may have."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert small_detector("torch", precision=precision).precision == precision
    assert torch.backends.cudnn.allow_tf32 is may_round


def test_batch_is_halved_when_the_memory_does_not_suffice():
    detector = small_detector("torch")
    network = detector.network
    network.lanes, network.batch_size = 1, 3
    run, batch_lengths = network.run_network, []

    def scarce(inputs):
        batch_lengths.append(len(inputs))
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(inputs)

    network.run_network = scarce
    image = draw_scene(1, (640, 360), 8, input_size=320).image
    found = detector.detect([image] * 3)
    assert batch_lengths == [3, 1, 1, 1]
    assert network.batch_size == 1
    expected = small_detector().detect([image])[0]
    assert len(expected) > 0
    assert [len(one) for one in found] == [len(expected)] * 3


def test_photograph_too_large_for_the_device_is_made_small_before_it_goes_there(monkeypatch):
    def too_large(device, views):
        raise torch.OutOfMemoryError("CUDA out of memory")

    image = draw_scene(1, (640, 360), 8, input_size=320).image
    detector = small_detector("torch")
    expected = detector.detect([image])[0]
    monkeypatch.setattr("inference.pipeline.torch_network.lay_out_on", too_large)
    detector.network._on_cuda = True  # all else runs on the processor as it does on a device
    found = detector.detect([image])[0]
    assert len(expected) > 0
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_batch_that_another_lane_has_lowered_is_not_raised_again():
    detector = small_detector("torch")
    network = detector.network
    network.lanes, network.batch_size = 1, 4
    run = network.run_network

    def scarce(inputs):
        if len(inputs) == 4:
            network.batch_size = 1  # what the other lane does meanwhile
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert len(inputs) == 1
        return run(inputs)

    network.run_network = scarce
    assert len(detector.detect([np.zeros((64, 64, 3), np.uint8)] * 4)) == 4
    assert network.batch_size == 1


def test_image_for_which_the_memory_never_suffices_is_an_error():
    detector = small_detector("torch")

    def never(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    detector.network.run_network = never
    with pytest.raises(PipelineError) as caught:
        detector.detect([np.zeros((64, 64, 3), np.uint8)])
    assert caught.value.code == "out_of_memory"


def test_batch_is_the_largest_that_pays_and_fits(monkeypatch):
    seconds_an_image = {1: 0.01, 2: 0.008, 4: 0.005, 8: 0.0049, 16: 0.001}
    clock = [0.0]
    monkeypatch.setattr("inference.pipeline.batching.time.perf_counter", lambda: clock[0])
    tried = []

    def run(size):
        tried.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        # The first run pays for what is set up once, and in the third the machine is busy.
        slowness = {1: 20, 3: 3}.get(tried.count(size), 1)
        clock[0] += slowness * size * seconds_an_image[size]

    assert fastest_batch_size(run, (1, 2, 4, 8, 16)) == 4  # eight are hardly faster than four
    assert tried == [*[1] * 4, *[2] * 4, *[4] * 4, *[8] * 4]
    tried.clear()
    seconds_an_image[8] = 0.003
    assert fastest_batch_size(run, (1, 2, 4, 8, 16)) == 8  # the memory ends there


def test_slow_network_is_not_run_again_and_again_to_find_its_batch(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("inference.pipeline.batching.time.perf_counter", lambda: clock[0])
    tried = []

    def run(size):
        tried.append(size)
        clock[0] += {1: 0.6, 2: 1.1, 4: 2.3}[size]

    assert fastest_batch_size(run, (1, 2, 4)) == 2
    assert tried == [*[1] * 3, *[2] * 2, *[4] * 2]  # the first of each sets up


def test_batch_that_is_named_is_taken_without_measuring_though_the_memory_ends_there():
    tried = []

    def run(size):
        tried.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fastest_batch_size(run, (4,)) == 4
    assert fastest_batch_size(run, (16,)) == 16
    assert tried == [4, 16]


def test_images_are_laid_out_on_a_device_as_on_the_processor():
    """What CUDA does on the device, here on the CPU: the same pixels, rounding apart."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 255, (300, 500, 3), np.uint8)
    image = image.repeat(2, axis=0).repeat(2, axis=1)
    parts = plan((1000, 600), DetectionOptions(image_size=320, tiling=Tiling(320, 0.1)))
    for group in (parts[:1], parts[1:]):
        views = [View(image, part) for part in group]
        expected = lay_out(views).astype(np.float32)
        np.testing.assert_allclose(lay_out_on(torch.device("cpu"), views), expected, atol=1)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_batch_of_sixteen_finds_what_single_images_give(runtime):
    """Also across files: the parts of pictures of four sizes share the batches."""
    scene = draw_scene(2, (640, 360), 8, input_size=320).image
    images = [scene, scene[:, ::-1], scene[40:], scene[:200, :250], scene[::-1], scene[20:340]]
    detector = small_detector(runtime, image_size=192, tiling={"tile": 320, "overlap": 0.2})
    detector.network.batch_size = 1
    alone = detector.detect(images)
    detector.network.batch_size = 16
    together = detector.detect(images)
    for ours, expected in zip(together, alone, strict=True):
        # A candidate that lies at the floor may fall on either side of it.
        one, other = ours.above(0.051), expected.above(0.051)
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=0.5)
        np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-3)


def test_only_the_wanted_classes_are_found():
    image = draw_scene(1).image
    everything = real_detector().detect([image])[0]
    wanted = DetectionOptions(precision="fp32", class_names=("car",))
    found = YoloDetector(real_detector().network, wanted).detect([image])[0]
    assert (found.class_ids == 0).all()
    assert len(found) == (everything.class_ids == 0).sum() > 0
    none = DetectionOptions(precision="fp32", class_names=("truck",))
    assert (YoloDetector(real_detector().network, none).detect([image])[0].class_ids == 1).all()


def test_class_that_the_model_does_not_know_is_refused():
    with pytest.raises(OptionsError) as caught:
        YoloDetector(real_detector().network, DetectionOptions(class_names=("car", "boat")))
    (fault,) = caught.value.faults
    assert (fault.field, fault.code) == ("class_names", "unknown")
    assert fault.detail == "The model knows no class boat, only car, truck, bus, minibus."


def test_int8_without_a_twin_is_refused(tmp_path):
    weights = tmp_path / "plain.pt"
    weights.symlink_to(WEIGHTS)
    for runtime in ("openvino", "torch"):
        with pytest.raises(WeightsError) as caught:
            load_detector(weights, runtime=runtime, options=DetectionOptions(precision="int8"))
        assert caught.value.code == "precision_not_available"


def test_int8_is_for_the_processor_also_where_there_is_a_graphics_card(tmp_path, monkeypatch):
    """It comes as far as looking for the twin, instead of asking for a processor."""
    monkeypatch.setattr("inference.pipeline.network.torch.cuda.is_available", lambda: True)
    weights = tmp_path / "plain.pt"
    weights.symlink_to(WEIGHTS)
    with pytest.raises(WeightsError, match="has no int8 twin"):
        load_network(weights, precision="int8")


def test_device_that_is_not_there_is_no_fault_of_the_weights():
    """Where it is asked for, the processor does not take its place without a word."""
    with pytest.raises(DeviceUnavailableError, match="There is no device cuda:99 here: "):
        load_network(WEIGHTS, device="cuda:99")
    with pytest.raises(DeviceUnavailableError, match="There is no device toaster here: "):
        load_network(WEIGHTS, device="toaster")


def test_openvino_beside_a_graphics_card_computes_as_the_processor_does(monkeypatch):
    """Not in the card's fp16, and not at all where the card is asked for by its name."""
    monkeypatch.setattr("inference.pipeline.network.torch.cuda.is_available", lambda: True)
    network = load_network(WEIGHTS, runtime="openvino")
    assert (network.device, network.runtime) == ("cpu", "openvino")
    assert network.precision in {"fp32", "bf16"}
    monkeypatch.setattr("inference.pipeline.network.usable_device", torch.device)
    with pytest.raises(DeviceUnavailableError, match="on the processor here, not on cuda"):
        load_network(WEIGHTS, runtime="openvino", device="cuda")


def test_runtime_that_there_is_not_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="one of auto, torch, openvino, not tensorrt"):
        load_network(tmp_path / "none.pt", runtime="tensorrt")


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_detector(tmp_path / "none.pt")
    assert caught.value.code == "weights_missing"


def test_weights_other_than_the_registered_ones_are_refused_before_they_are_read(tmp_path):
    changed = tmp_path / "changed.pt"
    changed.write_bytes(b"not a checkpoint at all")
    with pytest.raises(WeightsError) as caught:
        load_detector(changed, sha256="0" * 64)
    assert caught.value.code == "weights_changed"
    with pytest.raises(WeightsError) as caught:
        load_detector(changed)
    assert caught.value.code == "weights_unreadable"


class _Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_planted_in_weights_is_not_run(tmp_path):
    weights, trace = tmp_path / "planted.pt", tmp_path / "trace"
    torch.save({"model": _Planted(trace)}, weights)
    assert zipfile.is_zipfile(weights)
    with pytest.raises(WeightsError) as caught:
        load_detector(weights)
    assert caught.value.code == "weights_unreadable"
    assert caught.value.detail == "planted.pt is no readable checkpoint."  # and names no path
    assert not trace.exists()


def test_torch_that_cannot_load_safely_loads_nothing(monkeypatch):
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    with pytest.raises(WeightsError, match="cannot read weights safely"):
        load_detector(WEIGHTS, device="cpu")


def test_loading_leaves_the_process_as_it_was(tmp_path):
    """In a process of its own, because importing happens once."""
    script = f"""
import os, sys
import PIL.Image
opened_by = PIL.Image.open
os.environ.pop("OMP_NUM_THREADS", None)
from pathlib import Path
from inference.pipeline.network import load_detector, load_network
load_detector(Path({str(WEIGHTS)!r}), config_dir=Path({str(tmp_path / "settings")!r}))
assert PIL.Image.open is opened_by
assert "OMP_NUM_THREADS" not in os.environ
assert "torchvision" not in sys.modules
assert not any(name.split(".")[0] == "django" for name in sys.modules)
import threading
assert threading.enumerate() == [threading.main_thread()]
"""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path / "home")},
    )
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "home").exists()
    assert (tmp_path / "settings").is_dir()


def test_seventy_percent_of_the_labelled_street_are_found():
    data = shared_data()
    if data is None:
        pytest.skip("the development data are not on this machine")
    folder = data / "aerial_vehicles"
    found_count = true_count = 0
    for frame in iter_frames(folder / "street_25_frames.mp4"):
        labels = np.loadtxt(folder / "labels" / f"MOS{155 + frame.frame_index}.txt", ndmin=2)
        labels = labels[labels[:, 0] != 4]
        height, width = frame.image.shape[:2]
        centres, sizes = labels[:, 1:3] * (width, height), labels[:, 3:] * (width, height)
        true_xyxy = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
        found = real_detector().detect([frame.image])[0].above(0.25)
        found_count += match_boxes(true_xyxy, found.boxes_xyxy)[0]
        true_count += len(true_xyxy)
    assert true_count > 1300
    assert found_count >= 0.85 * true_count

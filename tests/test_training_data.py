"""Which photographs are trained on, and that a seed decides every batch."""

import cv2
import numpy as np
import pytest
import torch

from inference.pipeline.merge import iou_matrix
from inference.training.augment import Mix, draw_sample
from inference.training.batches import BatchPlan, iter_batches, make_batch
from inference.training.clutter import draw_clutter
from inference.training.data import (
    Sources,
    draw_scenes,
    draw_traffic,
    load_bare_regions,
    load_photographs,
    picture_of,
    sequence_of,
)
from inference.training.quantize import calibration_inputs
from tests.training_fakes import sources

PLAN = BatchPlan(sizes=((64, 3), (96, 2)))


@pytest.fixture
def photographs(tmp_path):
    """A folder of four little photographs from three sequences."""
    for name in ("MOS155", "MOS156", "DJI_0005-0018", "DJI_0028"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.zeros((50, 100, 3), np.uint8))
        (tmp_path / "labels" / f"{name}.txt").write_text("3 0.5 0.5 0.2 0.4\n4 0.1 0.1 0.1 0.1\n")
    return tmp_path


def test_neighbouring_frames_belong_to_one_sequence():
    names = ("MOS74", "MOS155", "DJI_0005-0018", "DJI-00760-00039", "DJI_0028")
    assert [sequence_of(name) for name in names] == [
        "MOS74-93",
        "MOS155-179",
        "DJI_0005",
        "DJI-00760",
        "DJI_0028",
    ]


def test_a_sequence_that_is_held_out_is_not_loaded(photographs):
    loaded = load_photographs(photographs, held_out=["MOS155-179"])
    assert [picture.name for picture in loaded] == ["DJI_0005-0018", "DJI_0028"]


def test_labels_become_boxes_in_pixels_and_unknown_classes_are_neutral(photographs):
    minibus = load_photographs(photographs)[1]
    assert minibus.class_ids.tolist() == [3]
    np.testing.assert_allclose(minibus.boxes_xyxy, [[40, 15, 60, 35]], atol=1e-4)
    np.testing.assert_allclose(minibus.neutral_xyxy[-1], [5, 2.5, 15, 7.5], atol=1e-4)


def test_holding_everything_out_is_refused(photographs):
    with pytest.raises(FileNotFoundError):
        load_photographs(photographs, held_out=["MOS155-179", "DJI_0005", "DJI_0028"])


def test_sequence_that_there_is_none_of_cannot_be_held_out(photographs):
    """Mistyped it would be trained on, and the card would say that it was not."""
    with pytest.raises(
        ValueError, match=r"no sequence DJI-0028, only DJI_0005, DJI_0028, MOS155-179"
    ):
        load_photographs(photographs, held_out=["MOS155-179", "DJI-0028"])


def test_bare_regions_are_the_bands_without_vehicles(tmp_path):
    cv2.imwrite(str(tmp_path / "image_test_1.jpg"), np.zeros((100, 60, 3), np.uint8))
    assert [picture.size_wh for picture in load_bare_regions(tmp_path)] == [(60, 62), (60, 21)]


def test_drawn_scenes_take_the_numbers_of_vehicles_in_turn():
    drawn = draw_scenes((5, 6), (3, 0))
    assert [len(picture.boxes_xyxy) for picture in drawn] == [3, 0]


def test_drawn_traffic_has_vehicles_closer_together_than_still_streets():
    seeds = (2_100_024, 2_100_031)
    passing = draw_traffic(seeds, (10, 14))
    again = draw_traffic(seeds, (10, 14))
    assert [picture.name for picture in passing] == ["traffic-2100024", "traffic-2100031"]
    for one, other in zip(passing, again, strict=True):
        np.testing.assert_array_equal(one.levels[0], other.levels[0])
    still = draw_scenes(seeds, (10, 14))
    assert largest_overlap(still) <= 0.1 < largest_overlap(passing)


def largest_overlap(pictures):
    """Of any two boxes of a picture."""
    return max(
        float(np.triu(iou_matrix(picture.boxes_xyxy, picture.boxes_xyxy), 1).max())
        for picture in pictures
    )


def test_a_picture_keeps_halves_of_itself_for_small_scales():
    picture = picture_of("wide", np.zeros((1700, 2000, 3), np.uint8))
    assert [level.shape[:2] for level in picture.levels] == [(1700, 2000), (850, 1000), (425, 500)]


def test_one_seed_gives_one_batch():
    one, same, other = (make_batch(sources(), PLAN, seed, 4) for seed in (1, 1, 2))
    assert torch.equal(one["img"], same["img"])
    assert torch.equal(one["bboxes"], same["bboxes"])
    assert not torch.equal(one["img"], other["img"])


def test_batches_are_the_same_when_a_run_goes_on_later():
    through = list(iter_batches(sources(), PLAN, 7, 0, 4))
    later = list(iter_batches(sources(), PLAN, 7, 2, 4))
    assert [batch["img"].shape[-1] for batch in through] == [64, 96, 64, 96]
    for one, other in zip(through[2:], later, strict=True):
        assert torch.equal(one["img"], other["img"])
        assert torch.equal(one["bboxes"], other["bboxes"])


def test_an_error_while_a_batch_is_made_reaches_who_waits_for_it():
    nothing = Sources((), (), ())
    with pytest.raises(ValueError, match="positive integer"):
        next(iter_batches(nothing, PLAN, 1, 0, 1))


def test_the_detailed_crop_shows_the_same_at_twice_the_size():
    rng = np.random.default_rng(5)
    sample = draw_sample(rng, sources(), 64, Mix(scenes=0, bare_backgrounds=0), detailed=True)
    assert sample.detailed.shape == (128, 128, 3)
    halved = cv2.resize(sample.detailed, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(halved.astype(int) - sample.image).mean() < 12


def test_clutter_has_no_vehicles_and_repeats_by_its_seed():
    one, same = draw_clutter(range(5)), draw_clutter(range(5))
    assert [len(picture.boxes_xyxy) for picture in one] == [0] * 5
    for picture, again in zip(one, same, strict=True):
        assert picture.size_wh == (640, 640)
        assert picture.levels[0].std() > 5
        np.testing.assert_array_equal(picture.levels[0], again.levels[0])


def test_the_int8_twin_is_calibrated_with_inputs_as_the_service_lays_them_out():
    inputs = list(calibration_inputs(sources(), 3, 64))
    assert [(one.shape, one.dtype) for one in inputs] == [((1, 64, 64, 3), np.uint8)] * 3
    assert not np.array_equal(inputs[0], inputs[1])

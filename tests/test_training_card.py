"""What is measured for a model card: its text, and pictures of what goes wrong."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from inference.pipeline.types import Detections
from inference.scenes import draw_scene
from inference.training import __main__ as commands
from inference.training import quantize
from inference.training.card import PICTURES_LIMIT_BYTES
from inference.training.failures import (
    FIRST_CLUTTER_SEED,
    FIRST_STREET_SEED,
    DrawnPicture,
    as_webp,
    draw_outcome,
    drawn_pictures,
    look_at,
    worst,
)
from tests.pipeline_fakes import WEIGHTS, OneByOne, digest_on_the_card

GREEN, RED, YELLOW = (60, 220, 60), (255, 40, 40), (255, 225, 30)
NONE = np.zeros((0, 4), np.float32)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


class Finder(OneByOne):
    """Finds the same boxes in every picture, with these confidences."""

    class_names = ("car",)

    def __init__(self, boxes_xyxy, confidences):
        self._found = Detections(
            np.zeros(len(boxes_xyxy), np.int16), np.array(confidences, np.float32), boxes_xyxy
        )

    def detect(self, images):
        return [self._found for _ in images]


def picture(name="street", true_xyxy=NONE):
    return DrawnPicture(name, np.zeros((100, 200, 3), np.uint8), true_xyxy)


class TestFailures:
    """Which boxes are right, missed and false, and which pictures are shown."""

    TRUE = boxes([10, 10, 30, 30], [60, 10, 80, 30])
    FOUND = boxes([11, 10, 31, 30], [120, 50, 140, 70], [60, 10, 80, 30])
    CONFIDENCES = (0.9, 0.5, 0.2)

    @pytest.fixture
    def outcome(self):
        [one] = look_at(Finder(self.FOUND, self.CONFIDENCES), [picture("a", self.TRUE)], 0.25)
        return one

    def test_box_below_the_confidence_finds_nothing(self, outcome):
        assert outcome.found_xyxy.tolist() == [[11, 10, 31, 30]]
        assert outcome.missed_xyxy.tolist() == [[60, 10, 80, 30]]
        assert outcome.false_xyxy.tolist() == [[120, 50, 140, 70]]
        assert outcome.mistake_count == 2

    def test_colours_tell_what_was_found_missed_and_false(self, outcome):
        drawn = draw_outcome(outcome)
        places = ((20, 9), (20, 58), (60, 118))
        assert [tuple(drawn[y, x]) for y, x in places] == [GREEN, RED, YELLOW]
        assert tuple(drawn[20, 20]) == (0, 0, 0)  # the vehicle itself is not painted over
        assert not outcome.picture.image.any()

    def outcomes(self, **true_boxes):
        finder = Finder(self.FOUND, self.CONFIDENCES)
        return look_at(finder, [picture(*one) for one in true_boxes.items()], 0.25)

    def test_most_mistaken_are_shown_first_and_faultless_ones_never(self):
        right = boxes([11, 10, 31, 30], [120, 50, 140, 70])
        outcomes = self.outcomes(faultless=right, two=self.TRUE, three=self.TRUE[1:])
        assert [one.picture.name for one in worst(outcomes, 5)] == ["three", "two"]
        assert [one.picture.name for one in worst(outcomes, 1)] == ["three"]
        assert worst(outcomes[:1], 5) == []

    def test_one_of_several_is_a_street_if_any_went_wrong(self):
        right = boxes([11, 10, 31, 30], [120, 50, 140, 70])
        outcomes = self.outcomes(a=NONE, b=NONE, c=NONE, street=right[:1], faultless=right)
        assert [one.picture.name for one in worst(outcomes, 2)] == ["a", "street"]
        assert [one.picture.name for one in worst(outcomes[:3], 2)] == ["a", "b"]

    def test_drawn_pictures_are_from_seeds_that_nothing_else_uses(self):
        names = [one.name for one in drawn_pictures(4, 2)]
        assert names == [
            *(f"street {FIRST_STREET_SEED + n}" for n in range(4)),
            f"clutter {FIRST_CLUTTER_SEED}",
            f"clutter {FIRST_CLUTTER_SEED + 1}",
        ]
        used = (
            commands._SCENE_SEEDS,
            commands._TRAFFIC_SEEDS,
            commands._CLUTTER_SEEDS,
            quantize._SCENE_SEEDS,
        )
        assert max(max(seeds) for seeds in used) < FIRST_STREET_SEED < FIRST_CLUTTER_SEED

    def test_streets_show_vehicles_of_usual_and_smaller_sizes_and_clutter_none(self):
        *streets, clutter = drawn_pictures(3, 1)
        lengths = [
            float(np.median((s.boxes_xyxy[:, 2:] - s.boxes_xyxy[:, :2]).max(1))) for s in streets
        ]
        assert [round(one) for one in lengths] == [44, 20, 18]
        assert len(clutter.boxes_xyxy) == 0

    @pytest.mark.parametrize("limit_bytes", [40_000, 4_000])
    def test_picture_fits_into_its_bytes(self, limit_bytes):
        noise = np.random.default_rng(1).integers(0, 255, (300, 400, 3)).astype(np.uint8)
        encoded = as_webp(noise, limit_bytes)
        assert limit_bytes / 4 < len(encoded) <= limit_bytes
        with Image.open(io.BytesIO(encoded)) as opened:
            assert opened.format == "WEBP"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for seed in (1, 2):
        scene = draw_scene(seed, (320, 320), 4, input_size=320)
        Image.fromarray(scene.image).save(folder / f"images/{seed}.png")
        low, high = scene.boxes_xyxy[:, :2] / 320, scene.boxes_xyxy[:, 2:] / 320
        rows = np.concatenate(((low + high) / 2, high - low), axis=1)
        lines = "".join(f"0 {' '.join(map(str, row))}\n" for row in rows)
        (folder / f"labels/{seed}.txt").write_text(lines)
    return folder


class TestCard:
    """The command, with the real weights on a drawn street."""

    def test_card_has_scores_recipe_failures_and_the_command(self, labelled, tmp_path):
        recipe = tmp_path / "recipe.json"
        recipe.write_text(json.dumps({"steps": 3, "plan": {"sizes": [[64, 2]]}, "start": "a.pt"}))
        arguments = ["card", str(WEIGHTS), str(labelled), "--out", str(tmp_path / "CARD.md")]
        arguments += ["--only", "1*", "--recipe", str(recipe), "--image-size", "320"]
        arguments += ["--precision", "fp32", "--device", "cpu", "--streets", "3", "--clutter", "2"]
        commands.main(arguments)
        text = (tmp_path / "CARD.md").read_text()
        assert f"`YOLO8s_FSR.pt`, {WEIGHTS.stat().st_size:,} bytes" in text
        assert f"`{digest_on_the_card(WEIGHTS)}`" in text
        assert "| classes | 0 car, 1 truck, 2 bus, 3 minibus |" in text
        assert f"| data | {labelled.name}: 1 images |" in text
        assert "| objects | 4 (4 small, 0 medium, 0 large) |" in text
        assert "|  | tiling off | tiling auto |" in text
        for row in ("| AP50 |", "| AP small |", "| car | 4 |"):
            assert row in text
        for row in ("| steps | 3 |", "| plan.sizes | [[64, 2]] |", "| start | a.pt |"):
            assert row in text
        assert "In 3 drawn streets (seeds from 4000000) and 2 drawn pictures of clutter" in text
        repeat = f"card YOLO8s_FSR.pt {labelled.name} --out CARD.md --only '1*'"
        assert f"    python -m inference.training {repeat}" in text
        assert str(tmp_path) not in text and str(WEIGHTS.parent) not in text
        pictures = sorted(path.name for path in tmp_path.glob("*.webp"))
        assert pictures[0] == "CARD-curves.webp" and len(pictures) >= 2
        assert all(f"]({name})" in text for name in pictures)
        total = sum(path.stat().st_size for path in tmp_path.glob("*.webp"))
        assert total <= PICTURES_LIMIT_BYTES

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            (["--only", "x*"], "No image in"),
            (["--split", "val"], "There is no split val of"),
            (["--image-size", "100"], "image_size must be a multiple of 32"),
            (["--recipe", "gone.json"], r"gone\.json cannot be read"),
        ],
    )
    def test_what_cannot_be_measured_is_refused_in_words(self, labelled, tmp_path, changes, told):
        out = tmp_path / "CARD.md"
        with pytest.raises(SystemExit, match=told):
            commands.main(["card", str(WEIGHTS), str(labelled), "--out", str(out), *changes])
        assert not list(tmp_path.iterdir())

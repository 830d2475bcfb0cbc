"""Measuring a detector: the data that are read, and figures that are pycocotools' own."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from inference.evaluation.data import for_model
from inference.evaluation.errors import EvaluationDataError
from inference.evaluation.evaluate import evaluate
from inference.evaluation.metrics import Scores
from inference.evaluation.read import read_data
from inference.evaluation.report import as_json, draw_curves, left_out, table
from inference.management.commands import evaluate as evaluate_command
from inference.models import ModelVersion
from inference.pipeline.types import Detections
from inference.scenes import draw_scene
from tests.pipeline_fakes import WEIGHTS, OneByOne, digest_on_the_card, real_detector

CLASSES = ("car", "truck", "bus")
SIZE_WH = (800, 600)


class Rehearsed(OneByOne):
    """A detector that has learnt by heart what it will find in which image, one by one."""

    class_names = CLASSES

    def __init__(self, found):
        self._found = iter(found)

    def detect(self, images):
        return [next(self._found) for _ in images]


def write_image(path: Path, size_wh=SIZE_WH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, "grey").save(path)


def write_labels(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


class Street:
    """Six images with up to 400 objects of every size, and what an imperfect detector finds."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        self.truth, self.found = [], []
        for count in (400, 3, 0, 40, 1, 25):
            sizes = np.exp(random.uniform(np.log(8), np.log(200), (count, 2)))
            corners = random.uniform(0, 1, (count, 2)) * (np.array(SIZE_WH) - sizes)
            boxes = np.concatenate((corners, sizes), axis=1).round(2)
            self.truth.append((random.integers(0, 2, count), boxes))
            self.found.append(self._found_near(random, *self.truth[-1]))

    @staticmethod
    def _found_near(random, class_ids, boxes) -> Detections:
        seen = random.random(len(boxes)) < 0.93
        moved = boxes[seen] + random.normal(0, 0.04, (seen.sum(), 4)) * boxes[seen][:, [2, 3, 2, 3]]
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        invented = np.column_stack(
            (random.uniform(0, 500, (30, 2)), random.uniform(5, 90, (30, 2)))
        )
        xywh = np.concatenate((moved, invented))
        ids = np.concatenate((class_ids[seen], random.integers(0, 3, 30)))
        ids = np.where(random.random(len(ids)) < 0.1, 1 - ids % 2, ids)
        confidences = np.concatenate(
            (random.uniform(0.3, 1, seen.sum()), random.uniform(0.01, 0.8, 30))
        )
        order = np.argsort(-confidences, kind="stable")
        xyxy = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)[order]
        return Detections(
            ids[order].astype(np.int16),
            confidences[order].astype(np.float32),
            xyxy.astype(np.float32),
        )

    def write_yolo(self, folder: Path) -> Path:
        for number, (class_ids, boxes) in enumerate(self.truth):
            write_image(folder / "images" / f"{number}.png")
            relative = boxes / np.array([*SIZE_WH, *SIZE_WH])
            centres = relative[:, :2] + relative[:, 2:] / 2
            rows = zip(class_ids, *centres.T, *relative[:, 2:].T, strict=True)
            write_labels(folder / "labels" / f"{number}.txt", rows)
        return folder

    def coco(self) -> dict:
        annotations = [
            {"image_id": number + 1, "category_id": int(class_id) + 10, "bbox": box.tolist()}
            | {"area": float(box[2] * box[3]), "iscrowd": 0}
            for number, (class_ids, boxes) in enumerate(self.truth)
            for class_id, box in zip(class_ids, boxes, strict=True)
        ]
        return {
            "images": [
                {"id": i + 1, "file_name": f"{i}.png", "width": 800, "height": 600}
                for i in range(len(self.truth))
            ],
            "annotations": [{"id": i, **one} for i, one in enumerate(annotations, start=1)],
            "categories": [{"id": i + 10, "name": name} for i, name in enumerate(CLASSES)],
        }

    def write_coco(self, folder: Path) -> Path:
        for number in range(len(self.truth)):
            write_image(folder / "images" / f"{number}.png")
        (folder / "annotations.json").write_text(json.dumps(self.coco()))
        return folder

    def scores(self, folder: Path, **arguments) -> Scores:
        data = for_model(read_data(folder), CLASSES, **arguments)
        return evaluate(Rehearsed(self.found), data, name="off").scores


@pytest.fixture(scope="module")
def street() -> Street:
    return Street()


@pytest.fixture(scope="module")
def yolo_folder(street, tmp_path_factory) -> Path:
    return street.write_yolo(tmp_path_factory.mktemp("yolo"))


@pytest.fixture(scope="module")
def coco_folder(street, tmp_path_factory) -> Path:
    return street.write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def coco_scores(street, coco_folder) -> Scores:
    return street.scores(coco_folder)


def pycocotools_own(street: Street, folder: Path, *, use_classes: bool, limits) -> COCOeval:
    """What somebody gets who gives the files to pycocotools and reads its summary."""
    rows = [
        {"image_id": i + 1, "category_id": int(c) + 10, "score": float(s)}
        | {"bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)]}
        for i, found in enumerate(street.found)
        for c, s, (x1, y1, x2, y2) in zip(
            found.class_ids, found.confidences, found.boxes_xyxy, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.useCats = int(use_classes)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("use_classes", [False, True])
def test_figures_are_those_of_a_direct_call_of_pycocotools(
    street, coco_folder, coco_scores, use_classes
):
    scores = coco_scores
    ours = scores.mean_over_classes if use_classes else scores.class_agnostic
    at_100 = scores.as_coco_counts[int(use_classes)]
    # Two limits: as COCO has it, and with 500 as the greatest, to which its figures then refer.
    default = pycocotools_own(street, coco_folder, use_classes=use_classes, limits=[1, 10, 100])
    assert [at_100.ap, at_100.ap_50, at_100.ap_75] == pytest.approx(default.stats[:3], abs=1e-9)
    assert [at_100.ap_small, at_100.ap_medium, at_100.ap_large] == pytest.approx(
        default.stats[3:6], abs=1e-9
    )
    assert at_100.recall_100 == pytest.approx(default.stats[8], abs=1e-9)
    many = pycocotools_own(street, coco_folder, use_classes=use_classes, limits=[10, 100, 500])
    expected = [*many.stats[1:6], many.stats[7], many.stats[8]]
    assert [
        ours.ap_50,
        ours.ap_75,
        ours.ap_small,
        ours.ap_medium,
        ours.ap_large,
        ours.recall_100,
        ours.recall_500,
    ] == pytest.approx(expected, abs=1e-9)
    precision = many.eval["precision"][..., 0, 2]
    assert ours.ap == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    at_80 = precision[0, 80]
    assert ours.precision_at_recall_80 == pytest.approx(at_80[at_80 > -1].mean(), abs=1e-9)
    # The case tells the limits, sizes and classes apart.
    assert ours.recall_500 > ours.recall_100 + 0.05
    assert len({round(one, 3) for one in expected}) == len(expected)


def test_of_equal_confidences_the_first_image_of_a_coco_file_counts_first_as_in_pycocotools(
    tmp_path,
):
    """Its first image is that of the lowest id, wherever it stands and whatever it is called."""
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    images = [
        {"id": 7, "file_name": "a.png", "width": 800, "height": 600},
        {"id": 2, "file_name": "b.png", "width": 800, "height": 600},
    ]
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40]}
    document = {"images": images, "annotations": [box], "categories": [{"id": 3, "name": "car"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    data = for_model(read_data(tmp_path), CLASSES)
    assert [one.path.name for one in data.images] == ["b.png", "a.png"]
    same = Detections(
        np.array([0], np.int16),
        np.array([0.5], np.float32),
        np.array([[10, 10, 50, 50]], np.float32),
    )
    scores = evaluate(Rehearsed([same, same]), data, name="off").scores
    assert scores.by_class["car"].ap_50 == 0.5  # the other way round it would be 1
    rows = [{"image_id": i, "category_id": 3, "score": 0.5, "bbox": box["bbox"]} for i in (2, 7)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "boxes.json"))
        for one in truth.dataset["annotations"]:
            one |= {"area": 1600, "iscrowd": 0}
        own = COCOeval(truth, truth.loadRes(rows), "bbox")
        own.evaluate()
        own.accumulate()
    assert own.eval["precision"][0, :, 0, 0, -1].mean() == 0.5


def test_yolo_and_coco_files_of_the_same_street_score_the_same(street, yolo_folder, coco_scores):
    of_yolo, of_coco = street.scores(yolo_folder), coco_scores
    assert of_yolo.sizes == of_coco.sizes
    assert sum(of_yolo.sizes.values()) == 469
    for name in ("ap", "ap_small", "recall_500"):
        one, other = getattr(of_yolo.class_agnostic, name), getattr(of_coco.class_agnostic, name)
        assert one == pytest.approx(other, abs=2e-3)


def test_class_without_an_object_does_not_count(coco_scores):
    scores = coco_scores
    assert set(scores.by_class) == {"car", "truck"}
    assert set(scores.curves) == {"", "car", "truck"}
    mean = (scores.by_class["car"].ap + scores.by_class["truck"].ap) / 2
    assert scores.mean_over_classes.ap == pytest.approx(mean, abs=1e-9)


def test_perfect_detector_scores_one_and_a_blind_one_nothing(tmp_path):
    write_image(tmp_path / "a.png")
    write_labels(tmp_path / "a.txt", [(0, 0.5, 0.5, 0.1, 0.1)])
    data = for_model(read_data(tmp_path), CLASSES)
    exact = Detections(
        np.array([0], np.int16), np.array([0.9], np.float32), np.array([[360, 270, 440, 330]], "f4")
    )
    perfect = evaluate(Rehearsed([exact]), data, name="off").scores.class_agnostic
    assert [perfect.ap, perfect.recall_100, perfect.ap_medium] == pytest.approx([1, 1, 1])
    assert perfect.ap_small is None
    blind = evaluate(Rehearsed([Detections.empty()]), data, name="off").scores.class_agnostic
    assert (blind.ap, blind.recall_500, blind.precision_at_recall_80) == (0.0, 0.0, 0.0)


def test_crowd_is_neither_missed_nor_wrongly_found(tmp_path):
    write_image(tmp_path / "a.png")
    document = Street().coco()
    document["images"] = [{"id": 1, "file_name": "a.png", "width": 800, "height": 600}]
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 10, "bbox": [10, 10, 20, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 10, "bbox": [100, 100, 300, 300], "iscrowd": 1},
    ]
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = Detections(
        np.zeros(3, np.int16),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([[110, 110, 130, 130], [10, 10, 30, 30], [200, 200, 230, 230]], "f4"),
    )
    data = for_model(read_data(tmp_path), CLASSES)
    scores = evaluate(Rehearsed([found]), data, name="off").scores
    assert scores.class_agnostic.ap == pytest.approx(1)
    assert scores.sizes == {"small": 1, "medium": 0, "large": 0}


@pytest.mark.parametrize("ignored", [[], ["bus"], ["1"]])
def test_what_is_found_of_an_ignored_class_is_no_mistake(tmp_path, ignored):
    write_image(tmp_path / "a.png", (400, 400))
    write_labels(tmp_path / "a.txt", [(0, 0.2, 0.2, 0.1, 0.1), (1, 0.6, 0.6, 0.2, 0.2)])
    (tmp_path / "data.yaml").write_text("names: [car, bus]")
    perfect = Detections(
        np.array([2, 0], np.int16),
        np.array([0.9, 0.8], np.float32),
        np.array([[200, 200, 280, 280], [60, 60, 100, 100]], np.float32),
    )
    data = for_model(read_data(tmp_path), CLASSES, ignored=ignored)
    scores = evaluate(Rehearsed([perfect]), data, name="off").scores
    assert sum(scores.sizes.values()) == (1 if ignored else 2)
    assert scores.class_agnostic.ap == pytest.approx(1)
    assert scores.mean_over_classes.ap == pytest.approx(1)


class TestReading:
    """Which folders are understood, and what is said of the others."""

    ROW = (1, 0.5, 0.5, 0.2, 0.2)

    @pytest.mark.parametrize(
        ("image", "labels"),
        [
            ("images/a.jpg", "labels/a.txt"),
            ("a.jpg", "a.txt"),
            ("images/val/b/a.jpg", "labels/val/b/a.txt"),
            ("val/images/a.JPG", "val/labels/a.txt"),
        ],
    )
    def test_labels_are_found_beside_the_folder_of_images_or_the_image(
        self, tmp_path, image, labels
    ):
        write_image(tmp_path / image)
        write_labels(tmp_path / labels, [self.ROW])
        [one] = read_data(tmp_path).images
        assert one.class_ids.tolist() == [1]
        np.testing.assert_allclose(one.boxes_xywh, [[0.4, 0.4, 0.2, 0.2]])

    def test_folder_of_images_itself_may_be_named(self, tmp_path):
        write_image(tmp_path / "images/a.jpg")
        write_labels(tmp_path / "labels/a.txt", [self.ROW])
        (tmp_path / "data.yaml").write_text("names: {0: car, 1: van}\n")
        data = read_data(tmp_path / "images")
        assert (data.object_count, data.class_names) == (1, {0: "car", 1: "van"})

    @pytest.mark.parametrize("listing", ["classes.txt", "labels/day/classes.txt"])
    @pytest.mark.parametrize("named", [".", "images", "images/day"])
    def test_annotation_tools_name_the_classes_in_a_text_file(self, tmp_path, listing, named):
        """Their order is that of the tool, not of the model."""
        write_image(tmp_path / "images/day/a.jpg")
        write_labels(tmp_path / "labels/day/a.txt", [self.ROW])
        # Windows marks the beginning; a class that was given up leaves its line.
        (tmp_path / listing).write_text("\ufeffcar\nbus\n\nvan\n", encoding="utf-8")
        data = read_data(tmp_path / named)
        assert (data.object_count, data.class_names) == (1, {0: "car", 1: "bus", 3: "van"})
        assert for_model(data, CLASSES).images[0].class_ids.tolist() == [2]
        (tmp_path / "data.yaml").write_text("names: [bus, car]\n")  # tells more, so it counts
        assert read_data(tmp_path / named).class_names == {0: "bus", 1: "car"}

    def test_folders_that_are_linked_in_are_read_and_hidden_ones_are_not(self, tmp_path):
        for place in ("data/{}/day", "data/{}/.ipynb_checkpoints", "elsewhere/{}"):
            write_image(tmp_path / place.format("images") / "a.jpg")
            write_labels(tmp_path / place.format("labels") / "a.txt", [self.ROW])
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / "night").symlink_to(tmp_path / "elsewhere" / kind)
        (tmp_path / "data/images/again").symlink_to(tmp_path / "data/images")
        (tmp_path / "data/images/day/up").symlink_to("..")
        (tmp_path / "data/images/day/up too").symlink_to("..")
        data = read_data(tmp_path / "data")
        assert [one.path.parent.name for one in data.images] == ["day", "night"]
        assert data.object_count == 2

    def test_image_without_a_label_file_shows_nothing(self, tmp_path):
        for name in ("a", "b"):
            write_image(tmp_path / f"{name}.png")
        write_labels(tmp_path / "b.txt", [self.ROW])
        assert [len(one.class_ids) for one in read_data(tmp_path).images] == [0, 1]

    def test_only_some_of_the_images(self, tmp_path):
        for name in ("MOS1", "MOS2", "DJI"):
            write_image(tmp_path / f"{name}.png")
            write_labels(tmp_path / f"{name}.txt", [self.ROW])
        found = read_data(tmp_path, only=["MOS*"]).images
        assert [one.path.name for one in found] == ["MOS1.png", "MOS2.png"]

    def test_classes_are_matched_by_name_and_unknown_ones_left_out(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [(0, *self.ROW[1:]), self.ROW, (2, *self.ROW[1:])])
        (tmp_path / "data.yaml").write_text("names: [Bus, bicycle, car]\n")
        data = for_model(read_data(tmp_path), CLASSES)
        assert data.images[0].class_ids.tolist() == [2, 0]
        assert data.left_out == {"bicycle": 1}

    def test_class_numbers_beyond_the_model_are_left_out(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW, (4, *self.ROW[1:])])
        data = for_model(read_data(tmp_path), CLASSES)
        assert (data.images[0].class_ids.tolist(), data.left_out) == ([1], {"class 4": 1})

    def test_model_with_two_classes_of_one_name_is_not_measured(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW])
        with pytest.raises(EvaluationDataError, match="calls two of its classes the same"):
            for_model(read_data(tmp_path), ("car", "Car"))

    @pytest.mark.parametrize("word", ["truck", "TRUCK", "1"])
    def test_ignored_class_is_left_out(self, tmp_path, word):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW, (0, *self.ROW[1:])])
        data = for_model(read_data(tmp_path), CLASSES, ignored=[word])
        assert (data.images[0].class_ids.tolist(), data.left_out) == ([0], {"truck": 1})

    @pytest.mark.parametrize(
        ("names", "ignored", "expected"),
        [
            ("[van, Bus, car]", ["bus"], {2}),
            ("[van, Bus, car, truck]", ["truck"], {1}),  # of which no image shows any
            ("[van, Bus, car]", ["Truck"], {1}),  # which only the model knows
            ("[van, Bus, car]", ["van"], set()),  # which the model does not know
            ("[bus, Bus, car]", ["0"], set()),  # the other one counts
            ("[van, Bus, car]", [], set()),
        ],
    )
    def test_ignored_class_is_ignored_in_what_the_model_finds(
        self, tmp_path, names, ignored, expected
    ):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [(n, *self.ROW[1:]) for n in range(3)])
        (tmp_path / "data.yaml").write_text(f"names: {names}")
        assert for_model(read_data(tmp_path), CLASSES, ignored=ignored).ignored_ids == expected

    def test_ignored_class_that_does_not_exist_is_a_mistake(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW])
        with pytest.raises(EvaluationDataError, match="data or the model is called cyclist"):
            for_model(read_data(tmp_path), CLASSES, ignored=["cyclist"])

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("0 0.5 0.5 0.1", "line 1: 4 words"),
            ("0 0.5 0.5 0.1 0.1\n\n0 a b c d", "line 3: '0 a b c d' are not all numbers"),
            ("0.5 0.5 0.5 0.1 0.1", "the class 0.5 is no whole number"),
            ("-1 0.5 0.5 0.1 0.1", "the class -1 is no whole number"),
            ("1e999 0.5 0.5 0.1 0.1", "the class 1e999 is no whole number"),
            ("1e30 0.5 0.5 0.1 0.1", "the class 1e30 is no whole number"),
            ("0 0.5 0.5 nan 0.1", "line 1: 0.5 0.5 nan 0.1 is no box"),
            ("0 320 240 20 20", "320 240 20 20 is no box"),
            ("0 0.5 0.5 0.1 1.0011", "line 1: 0.5 0.5 0.1 1.0011 is no box"),
            ("0 0.5 0.5 -0.0011 0.1", "is no box"),
            ("0 0.5 0.5 0.1 0.1 0.9", "6 words"),
            ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "8 words"),
            ("0 0.1 0.1 0.2 0.1 0.2 7.2", "0.1 0.1 0.2 0.1 0.2 7.2 is no polygon"),
            (b"\xff\xfe\x00", "cannot be read as text"),
        ],
    )
    def test_label_that_makes_no_sense_is_named_with_its_line(self, tmp_path, text, reason):
        write_image(tmp_path / "a.png")
        (tmp_path / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(EvaluationDataError) as refusal:
            read_data(tmp_path)
        assert reason in str(refusal.value)
        assert "a.txt" in str(refusal.value)

    def test_polygon_counts_as_the_box_around_it(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [(1, 0.1, 0.5, 0.4, 0.2, 0.3, 0.6), self.ROW])
        [one] = read_data(tmp_path).images
        assert one.class_ids.tolist() == [1, 1]
        np.testing.assert_allclose(one.boxes_xywh, [[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.2, 0.2]])

    def test_share_that_was_rounded_beyond_the_image_is_clipped(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [(1, 0.5, 0.5, 1.0000001, 1.001), (1, -0.001, 0, 0.2, 1)])
        [one] = read_data(tmp_path).images
        np.testing.assert_array_equal(one.boxes_xywh, [[0, 0, 1, 1], [-0.1, -0.5, 0.2, 1]])

    def test_boxes_without_an_area_are_left_out_and_told_of(self, tmp_path):
        write_image(tmp_path / "a.png")
        flat, none, line = (0, 0.5, 0.5, 0.1, 0), (0, 0.5, 0.5, -0.0001, 0.1), (0, *[0.1, 0.5] * 3)
        write_labels(tmp_path / "a.txt", [flat, self.ROW, none, line])
        data = for_model(read_data(tmp_path), CLASSES)
        assert data.images[0].class_ids.tolist() == [1]
        assert (data.object_count, data.empty_box_count, data.left_out) == (1, 3, {})
        assert left_out(data) == ["Left out: boxes without an area, 3 of them."]

    def test_box_that_is_written_twice_is_one_vehicle_and_another_class_there_is_another(
        self, tmp_path
    ):
        write_image(tmp_path / "a.png")
        other_class = (0, *self.ROW[1:])
        write_labels(tmp_path / "a.txt", [self.ROW, other_class, self.ROW, self.ROW])
        data = read_data(tmp_path)
        assert data.images[0].class_ids.tolist() == [1, 0]
        assert (data.object_count, data.repeated_box_count) == (2, 2)
        assert left_out(data) == ["Left out: boxes written twice, 2 of them."]

    def test_coco_boxes_without_an_area_are_left_out(self, street, tmp_path):
        folder = street.write_coco(tmp_path)
        document = street.coco()
        document["annotations"][3].update(bbox=[1, 2, 0, 3], area=0)
        (folder / "annotations.json").write_text(json.dumps(document))
        data = read_data(folder)
        assert (data.object_count, data.empty_box_count) == (468, 1)
        assert len(data.images[0].areas) == len(data.images[0].class_ids) == 399

    def test_folders_that_hold_no_labelled_image(self, tmp_path):
        with pytest.raises(EvaluationDataError, match="no folder or file"):
            read_data(tmp_path / "nowhere")
        with pytest.raises(EvaluationDataError, match="There is no image in"):
            read_data(tmp_path)
        write_image(tmp_path / "a.png")
        with pytest.raises(EvaluationDataError, match="None of the 1 images"):
            read_data(tmp_path)
        write_labels(tmp_path / "a.txt", [])
        with pytest.raises(EvaluationDataError, match="no label at all"):
            for_model(read_data(tmp_path), CLASSES)

    def test_data_of_other_classes_cannot_be_measured(self, tmp_path):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW])
        (tmp_path / "data.yaml").write_text("names: [cat, dog]")
        with pytest.raises(EvaluationDataError, match=r"\(dog\) is measured: the model knows car"):
            for_model(read_data(tmp_path), CLASSES)

    @pytest.mark.parametrize(
        "text", ["names: 3", "- a", "names: {a: b}", "names: {²: b}", "names: [", "{}"]
    )
    def test_class_names_that_are_none(self, tmp_path, text):
        write_image(tmp_path / "a.png")
        write_labels(tmp_path / "a.txt", [self.ROW])
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(EvaluationDataError, match=r"data\.yaml"):
            read_data(tmp_path)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda d: d.pop("images"), "is no COCO file: KeyError"),
            (lambda d: d["images"].clear(), "there is no image 1"),
            (lambda d: d["images"].append(d["images"][0] | {"file_name": "1.png"}), "of the id 1."),
            (lambda d: d["categories"].clear(), "there is no category"),
            (lambda d: d["categories"].append({"id": 10, "name": "van"}), "several of the id 10."),
            (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "is no box"),
            (lambda d: d["annotations"][0].update(bbox=[1, 2, -1, 3]), "is no box"),
            (lambda d: d["annotations"].append("x"), "is no COCO file: AttributeError"),
            (lambda d: d["annotations"][0].update(bbox="x"), "is no COCO file: ValueError"),
            (lambda d: d["annotations"][0].update(area=-1), "-1 is no area"),
            (lambda d: d["annotations"][0].update(area=np.nan), "nan is no area"),
            (lambda d: d["annotations"][0].update(area=np.inf), "inf is no area"),
            (lambda d: d["annotations"][0].update(iscrowd="no"), "is no COCO file: ValueError"),
            (lambda d: d["images"][0].update(file_name="b.png"), "The image b.png of"),
        ],
    )
    def test_coco_file_that_makes_no_sense_is_refused(self, street, tmp_path, change, reason):
        folder = street.write_coco(tmp_path)
        document = street.coco()
        change(document)
        (folder / "annotations.json").write_text(json.dumps(document))
        with pytest.raises(EvaluationDataError) as refusal:
            read_data(folder)
        assert reason in str(refusal.value)

    def test_coco_category_beyond_all_numbers_is_refused(self, street, tmp_path):
        folder = street.write_coco(tmp_path)
        text = json.dumps(street.coco())
        huge = text.replace('"category_id": 10', f'"category_id": {10**30}')
        huge = huge.replace('{"id": 10, "name"', f'{{"id": {10**30}, "name"')
        (folder / "annotations.json").write_text(huge)
        with pytest.raises(EvaluationDataError, match="is no COCO file: OverflowError"):
            read_data(folder)

    def test_coco_label_without_an_area_has_that_of_its_box(self, street, tmp_path):
        folder = street.write_coco(tmp_path)
        document = street.coco()
        first, second, third, *_ = document["annotations"]
        del first["area"]
        second["area"] = None
        third["area"] = 7
        (folder / "annotations.json").write_text(json.dumps(document))
        areas = read_data(folder).images[0].areas
        expected = [one["bbox"][2] * one["bbox"][3] for one in (first, second)]
        np.testing.assert_allclose(areas[:3], [*expected, 7])

    @pytest.mark.parametrize(
        ("value", "is_crowd"),
        [("0", False), ("1", True), (0, False), (1, True), (None, False), (True, True)],
    )
    def test_coco_crowd_is_a_number_even_as_text(self, street, tmp_path, value, is_crowd):
        folder = street.write_coco(tmp_path)
        document = street.coco()
        document["annotations"][0]["iscrowd"] = value
        (folder / "annotations.json").write_text(json.dumps(document))
        crowds = read_data(folder).images[0].is_crowd
        assert (bool(crowds[0]), crowds[1:].any()) == (is_crowd, False)

    def test_files_that_macos_writes_beside_others_are_no_data(self, street, tmp_path):
        street.write_yolo(tmp_path / "yolo")
        (tmp_path / "yolo/images/._0.png").write_bytes(b"no picture")
        assert len(read_data(tmp_path / "yolo").images) == 6
        (tmp_path / "coco").mkdir()
        street.write_coco(tmp_path / "coco")
        (tmp_path / "coco/._annotations.json").write_bytes(b"no annotations")
        assert len(read_data(tmp_path / "coco").images) == 6

    def test_several_coco_files_need_one_to_be_named(self, street, tmp_path):
        folder = street.write_coco(tmp_path)
        (folder / "more.json").write_text("{}")
        with pytest.raises(EvaluationDataError, match=r"annotations\.json, more\.json"):
            read_data(folder)
        assert len(read_data(folder / "annotations.json").images) == 6

    @pytest.mark.parametrize("folder", ["val", "images/val"])
    def test_coco_file_of_a_split_finds_its_images(self, street, tmp_path, folder):
        (tmp_path / "annotations").mkdir()
        document = street.coco()
        (tmp_path / "annotations/instances_val.json").write_text(json.dumps(document))
        for one in document["images"]:
            write_image(tmp_path / folder / one["file_name"])
        assert read_data(tmp_path).object_count == 469

    def test_image_of_another_size_than_its_labels(self, street, tmp_path):
        folder = street.write_coco(tmp_path)
        write_image(folder / "images/3.png", (80, 60))
        with pytest.raises(EvaluationDataError, match="80 x 60 pixels, its labels are for 800 x 6"):
            street.scores(folder)

    def test_damaged_image_is_named(self, street, tmp_path):
        folder = street.write_yolo(tmp_path)
        (folder / "images/3.png").write_bytes(b"no picture")
        with pytest.raises(EvaluationDataError, match=r"3\.png cannot be read"):
            street.scores(folder)


class TestSplits:
    """A data set as Ultralytics lays it out: `images/val`, `labels/val`, and a `data.yaml`."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for split, count in (("train", 3), ("val", 2), ("test", 1)):
            for number in range(count):
                write_image(tmp_path / f"images/{split}/{number}.png")
                write_labels(tmp_path / f"labels/{split}/{number}.txt", [(1, 0.5, 0.5, 0.1, 0.1)])
        self.write_yaml(tmp_path)
        return tmp_path

    @staticmethod
    def write_yaml(folder: Path, **changes) -> Path:
        document = {f"{name}": f"images/{name}" for name in ("train", "val", "test")}
        document |= {"path": ".", "names": ["van", "car"], **changes}
        (folder / "data.yaml").write_text(json.dumps(document))
        return folder / "data.yaml"

    @staticmethod
    def names(data) -> list[str]:
        return [f"{one.path.parent.name}/{one.path.stem}" for one in data.images]

    def test_folder_of_one_split_has_its_labels_beside_and_its_names_two_folders_above(
        self, folder
    ):
        data = read_data(folder / "images/val")
        assert self.names(data) == ["val/0", "val/1"]
        assert (data.object_count, data.class_names) == (2, {0: "van", 1: "car"})

    def test_split_named_from_within_itself(self, folder, monkeypatch):
        monkeypatch.chdir(folder / "images/val")
        data = read_data(Path())
        assert (data.object_count, data.class_names) == (2, {0: "van", 1: "car"})

    def test_last_folder_of_images_in_the_path_is_the_one_that_counts(self, tmp_path):
        write_image(tmp_path / "images/mine/images/a.png")
        write_labels(tmp_path / "images/mine/labels/a.txt", [(1, 0.5, 0.5, 0.1, 0.1)])
        write_labels(tmp_path / "labels/mine/images/a.txt", [(0, 0.5, 0.5, 0.1, 0.1)] * 2)
        assert read_data(tmp_path / "images/mine").images[0].class_ids.tolist() == [1]

    @pytest.mark.parametrize("named", [".", "data.yaml"])
    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            (None, ["val/0", "val/1"]),
            ("test", ["test/0"]),
            ("train", ["train/0", "train/1", "train/2"]),
            ("all", ["test/0", "train/0", "train/1", "train/2", "val/0", "val/1"]),
        ],
    )
    def test_only_the_split_is_measured_that_was_asked_for(self, folder, named, split, expected):
        data = read_data(folder / named, split=split)
        assert (self.names(data), data.split) == (expected, split or "val")
        assert data.class_names == {0: "van", 1: "car"}

    def test_path_is_relative_to_the_folder_of_the_file(self, folder, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir("/")
        data_file = self.write_yaml(elsewhere, path="..", val=["images/val", "images/test"])
        assert self.names(read_data(data_file)) == ["test/0", "val/0", "val/1"]

    def test_split_that_roboflow_names_from_a_folder_further_down(self, folder):
        data_file = self.write_yaml(folder, val="../images/test")
        assert self.names(read_data(data_file)) == ["test/0"]

    def test_split_may_be_a_list_of_images(self, folder):
        (folder / "some.txt").write_text("./images/train/1.png\n\nimages/val/0.png\n")
        data_file = self.write_yaml(folder, val="some.txt")
        assert self.names(read_data(data_file)) == ["train/1", "val/0"]

    @pytest.mark.parametrize(
        ("changes", "split", "reason"),
        [
            ({"val": None}, None, r"data\.yaml names no split val; it names train, test\."),
            ({"val": "images/valid"}, None, r"data\.yaml, val: .*images/valid is no folder"),
            ({"val": "labels/val"}, None, r"data\.yaml, val: there is no image in .*labels/val"),
            ({"path": "gone"}, "test", r"data\.yaml, test: .*gone/images/test is no folder"),
            ({"val": "some.txt"}, None, r"some\.txt, line 2: there is no image .*gone\.png"),
            ({"names": None}, None, r"data\.yaml names no classes"),
            ({"val": 3}, None, r"data\.yaml, val: .*3 is no folder"),
        ],
    )
    def test_file_whose_split_cannot_be_read_is_named(self, folder, changes, split, reason):
        (folder / "some.txt").write_text("images/val/0.png\ngone.png\n")
        with pytest.raises(EvaluationDataError, match=reason):
            read_data(self.write_yaml(folder, **changes), split=split)

    @pytest.mark.parametrize("place", ["dataset-metadata.json", "annotations/about.json"])
    def test_what_else_is_told_in_json_beside_a_file_of_splits_is_no_coco_file(self, folder, place):
        for kind in ("images", "labels"):
            (folder / kind).rename(folder / f"all-{kind}")
        (folder / "valid").mkdir()
        (folder / "all-images/val").rename(folder / "valid/images")
        (folder / "all-labels/val").rename(folder / "valid/labels")
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text('{"title": "Vans and cars"}')
        self.write_yaml(folder, val="valid/images")
        data = read_data(folder)
        assert (data.split, data.object_count) == ("val", 2)

    def test_folder_without_splits_has_none_to_choose(self, folder):
        with pytest.raises(
            EvaluationDataError, match=r"no split test of .*val: no data\.yaml in it"
        ):
            read_data(folder / "images/val", split="test")
        (folder / "data.yaml").write_text("names: [van, car]")
        with pytest.raises(EvaluationDataError, match="names no split val; it names none"):
            read_data(folder / "data.yaml")
        assert len(read_data(folder).images) == 6


def test_report_has_table_json_and_picture(street, yolo_folder, tmp_path):
    data = for_model(read_data(yolo_folder), CLASSES)
    found = [
        evaluate(Rehearsed(street.found), data, name="off"),
        evaluate(Rehearsed([Detections.empty()] * 6), data, name="auto"),
    ]
    lines = table(found).splitlines()
    assert lines[0].split() == ["tiling", "off", "tiling", "auto"]
    share = f"{found[0].scores.class_agnostic.ap_50:.3f}"
    assert [line.split()[:2] for line in lines if line.startswith("AP50 ")] == [["AP50", share]]
    assert json.loads(json.dumps(as_json(found[1])))["class_agnostic"]["ap_50"] == 0.0
    draw_curves(found, tmp_path / "curves.png", title="a street")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1320, 600)
        # Both lines are there: blue and vermilion pixels.
        colours = {tuple(one) for one in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours


class OutOfReach:
    """The versions of a database that does not answer."""

    def exclude(self, **_wanted):
        raise OperationalError("connection refused")


@pytest.fixture(scope="module")
def drawn_street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    scene = draw_scene(1, (640, 360), 8, input_size=640)
    (folder / "images").mkdir()
    Image.fromarray(scene.image).save(folder / "images/1.png")
    boxes = scene.boxes_xyxy / np.array([640, 360, 640, 360])
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = zip(scene.class_ids, *centres.T, *sizes.T, strict=True)
    write_labels(folder / "labels/1.txt", rows)
    return folder


@pytest.mark.parametrize("model", ["YOLO8s_FSR", str(WEIGHTS)])
def test_command_measures_a_version_or_a_file_of_weights_without_a_database(
    model, drawn_street, tmp_path, monkeypatch
):
    monkeypatch.setattr(ModelVersion, "objects", OutOfReach())
    output = io.StringIO()
    call_command(
        "evaluate",
        model,
        str(drawn_street),
        tiling=["off", "auto"],
        image_size=640,
        precision="fp32",
        device="cpu",
        json=tmp_path / "figures.json",
        picture=tmp_path / "curves.png",
        stdout=output,
    )
    assert "1 images, 8 objects" in output.getvalue()
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["model"]["class_names"] == ["car", "truck", "bus", "minibus"]
    assert document["model"]["sha256"] == digest_on_the_card(WEIGHTS)
    result, tiled = document["results"]
    assert (result["tiling"], tiled["options"]["tiling"]) == ("off", "auto")
    assert result["options"]["image_size"] == 640
    assert result["class_agnostic"]["ap_50"] > 0.9
    assert set(result["by_class"]) == {"car"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.django_db
def test_command_measures_a_version_as_jobs_use_it(drawn_street, tmp_path, settings, monkeypatch):
    network = real_detector().network  # of these weights, loaded once
    monkeypatch.setattr(evaluate_command, "_load", lambda weights, options, device: network)
    settings.NETWORK_IMAGE_SIZE = 640
    own = {"image_size": 320, "iou": 0.6, "one_class_per_object": False}
    sha256 = digest_on_the_card(WEIGHTS)
    ModelVersion.objects.create(version="own", weights_sha256=sha256, default_options=own)

    def options_of(model, *arguments):
        target = tmp_path / "figures.json"
        common = ("--tiling", "off", "--precision", "fp32", "--device", "cpu", "--json", target)
        call_command("evaluate", model, drawn_street, *common, *arguments, stdout=io.StringIO())
        [result] = json.loads(target.read_text())["results"]
        return {name: result["options"][name] for name in ("confidence_floor", *own)}

    assert options_of("own") == {"confidence_floor": 0.001, **own}
    assert options_of("own", "--image-size", "352", "--iou", "0.7") == {
        "confidence_floor": 0.001,
        "image_size": 352,
        "iou": 0.7,
        "one_class_per_object": False,
    }
    assert options_of("YOLO8s_FSR")["image_size"] == 640
    # An administrator may have set the package's own otherwise.
    ModelVersion.objects.filter(version="YOLO8s_FSR").update(
        default_options=own, weights_sha256=sha256
    )
    assert options_of("YOLO8s_FSR") == {"confidence_floor": 0.001, **own}
    assert options_of(str(WEIGHTS))["image_size"] == 768


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["YOLO9", "."], "YOLO9 is neither a file nor a model version"),
        (["YOLO8s_FSR", "nowhere"], "There is no folder or file nowhere"),
        (["YOLO8s_FSR", ".", "--split", "test"], r"There is no split test of \.: no data\.yaml"),
        (["YOLO8s_FSR", ".", "--tiling", "wild"], "tiling must be"),
        (["YOLO8s_FSR", ".", "--tiling", "²"], "tiling must be"),
        (["YOLO8s_FSR", ".", "--image-size", "100"], "image_size must be a multiple of 32"),
        (["YOLO8s_FSR", ".", "--confidence-floor", "0"], "confidence_floor must be"),
    ],
)
def test_command_says_what_is_wrong_with_its_arguments(arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=reason):
        call_command("evaluate", *arguments)


def test_command_refuses_a_file_that_is_no_model(drawn_street, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(CommandError, match=r"model\.pt is no readable checkpoint"):
        call_command("evaluate", str(tmp_path / "model.pt"), str(drawn_street), tiling=["off"])

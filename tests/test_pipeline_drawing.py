"""Boxes and labels are readable and hide no vehicle."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from inference.pipeline.draw import Kept, class_colour, draw
from inference.pipeline.encode import write_image
from inference.pipeline.errors import DrawingError
from inference.pipeline.types import Detections

NAMES = ("car", "truck")


def found(*boxes, class_ids=None, confidences=None):
    count = len(boxes)
    return Detections(
        np.array(class_ids or [0] * count, np.int16),
        np.array(confidences or [0.9] * count, np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


def grey(size_wh=(200, 100)):
    return np.full((size_wh[1], size_wh[0], 3), 90, np.uint8)


def changed(image, drawn):
    return (image != drawn).any(axis=2)


def test_box_lies_around_the_object_and_leaves_it_untouched():
    image = grey()
    drawn = draw(image, found((50, 40, 70, 60)), NAMES)
    mask = changed(image, drawn)
    assert not mask[40:60, 50:70].any()
    assert (drawn[39, 49:71] == class_colour(0)).all()
    assert (drawn[60, 49:71] == class_colour(0)).all()
    assert (drawn[39:61, 49] == class_colour(0)).all()
    assert (drawn[39:61, 70] == class_colour(0)).all()
    assert mask[:38].any(), "there is a label above the box"


def test_image_given_stays_as_it_was():
    image = grey()
    draw(image, found((50, 40, 70, 60)), NAMES)
    assert (image == 90).all()


def test_nothing_found_leaves_a_plain_copy():
    image = grey()
    drawn = draw(image, Detections.empty(), NAMES)
    assert drawn is not image
    np.testing.assert_array_equal(drawn, image)


def test_detections_below_the_display_confidence_are_not_drawn():
    image = grey()
    weak = found((50, 40, 70, 60), confidences=[0.2])
    assert not changed(image, draw(image, weak, NAMES)).any()
    assert changed(image, draw(image, weak, NAMES, minimum_confidence=0.2)).any()


def test_colour_tells_the_class():
    drawn = draw(grey(), found((20, 40, 40, 60), (120, 40, 140, 60), class_ids=[0, 1]), NAMES)
    assert (drawn[50, 19] == class_colour(0)).all()
    assert (drawn[50, 119] == class_colour(1)).all()
    assert class_colour(0) != class_colour(1)


def test_labels_cover_no_vehicle_in_a_crowd():
    rng = np.random.default_rng(0)
    left_top = rng.uniform(0, (580, 380), (150, 2))
    boxes = np.concatenate((left_top, left_top + 18), axis=1).astype(np.float32)
    image = grey((600, 400))
    crowd = found(*boxes, confidences=rng.uniform(0.3, 1, 150).tolist())
    drawn = draw(image, crowd, NAMES)
    lines = np.zeros(image.shape[:2], bool)
    for left, top, right, bottom in np.concatenate(
        (np.floor(boxes[:, :2]) - 1, np.ceil(boxes[:, 2:])), axis=1
    ).astype(int):
        for row in (top, bottom):
            lines[max(row, 0) : row + 1, max(left, 0) : right + 1] = True
        for column in (left, right):
            lines[max(top, 0) : bottom + 1, max(column, 0) : column + 1] = True
    inside = np.zeros(image.shape[:2], bool)
    for left, top, right, bottom in boxes.round().astype(int):
        inside[top:bottom, left:right] = True
    label_pixels = changed(image, drawn) & ~lines
    assert not (label_pixels & inside).any()
    assert label_pixels.any()


@pytest.mark.parametrize("size_wh", [(1, 1), (3, 2), (20, 500)])
def test_boxes_of_tiny_images_are_drawn_without_a_label(size_wh):
    image = grey(size_wh)
    drawn = draw(image, found((0, 0, *size_wh), (-5, -5, 900, 900)), NAMES)
    assert drawn.shape == image.shape


def test_class_without_a_name_is_drawn_by_its_number():
    assert changed(grey(), draw(grey(), found((50, 40, 70, 60), class_ids=[7]), NAMES)).any()


def test_labels_that_are_kept_take_no_more_memory_than_they_may():
    made = []

    def make(size):
        made.append(size)
        return np.zeros(size, np.uint8)

    kept = Kept(1000, lambda array: array.nbytes)
    for key, size in (("a", 400), ("b", 400), ("a", 400), ("c", 400)):  # "b" is the idlest
        assert len(kept.get(key, lambda size=size: make(size))) == size
    assert (made, kept.held_bytes) == ([400, 400, 400], 800)
    kept.get("a", lambda: make(400))
    kept.get("b", lambda: make(400))
    assert made == [400] * 4
    # What is larger than all that may be kept is made each time, and drives nothing out.
    assert len(kept.get("huge", lambda: make(2000))) == 2000
    assert kept.held_bytes == 800


def test_labels_of_large_photographs_do_not_fill_the_memory(monkeypatch):
    kept = Kept(200_000, lambda chip: chip.nbytes)
    monkeypatch.setattr("inference.pipeline.draw.kept_chips", kept)
    for hundredths in range(30, 45):  # a label is some 30 kB here
        boxes = found([300, 1000, 500, 1200], confidences=[hundredths / 100])
        draw(grey((3000, 3000)), boxes, NAMES)
    assert 150_000 < kept.held_bytes <= 200_000


def test_lines_grow_with_the_image():
    image = grey((4000, 3000))
    drawn = draw(image, found((500, 400, 700, 600)), NAMES)
    small = draw(grey(), found((50, 40, 70, 60)), NAMES)
    assert changed(image, drawn)[500, 480:500].sum() == 6
    assert changed(grey(), small)[50, 30:50].sum() == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.bmp", "BMP"), ("a.tiff", "TIFF")],
)
def test_image_is_written_in_the_format_of_its_name(tmp_path, name, kind):
    write_image(tmp_path / name, grey())
    with PilImage.open(tmp_path / name) as written:
        assert (written.format, written.size) == (kind, (200, 100))
        assert abs(np.asarray(written).astype(int) - 90).max() <= 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_image_of_an_unknown_format_is_not_written(tmp_path):
    with pytest.raises(DrawingError) as caught:
        write_image(tmp_path / "a.svg", grey())
    assert caught.value.code == "image_format_unknown"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size_wh"),
    [("a.webp", (16_384, 4)), ("a.jpg", (65_501, 4)), ("a.jpg", (4, 65_501))],
)
def test_image_too_large_for_its_format_leaves_nothing(tmp_path, name, size_wh):
    with pytest.raises(DrawingError) as caught:
        write_image(tmp_path / name, grey(size_wh))
    assert caught.value.code == "image_too_large"
    assert list(tmp_path.iterdir()) == []


def test_image_as_large_as_its_format_holds_is_written(tmp_path):
    write_image(tmp_path / "a.jpg", grey((65_500, 4)))
    with PilImage.open(tmp_path / "a.jpg") as written:
        assert written.size == (65_500, 4)


def test_page_draws_a_class_in_the_colour_of_annotated_files():
    script = Path(__file__).parent.parent / "templates/static/detections.js"
    told = re.findall(r'"#([0-9a-f]{6})"', script.read_text())
    colours = [tuple(bytes.fromhex(one)) for one in told]
    assert colours == [class_colour(class_id) for class_id in range(len(colours))]
    assert class_colour(len(colours)) == colours[0]

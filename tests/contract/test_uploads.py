"""POST /upload/: what is taken in, what it costs, and what a refusal leaves behind: nothing."""

import zipfile

import pytest

from tests import mediafiles
from tests.contract.client import (
    FILE_WAYS,
    PASSWORD,
    Way,
    assert_problem,
    assert_short_of_tokens,
    encoded,
)
from tests.contract.story import EMOJI, LONG, VIDEO_FRAMES

pytestmark = pytest.mark.service

JPEG = mediafiles.image_bytes("JPEG")


@pytest.fixture(scope="module")
def dataset(customer):
    return customer.new_dataset()


def stored_files(service) -> list[str]:
    return sorted(p.name for p in (service.data_dir / "media").rglob("*") if p.is_file())


@FILE_WAYS
def test_upload_answers_201_its_message_and_a_report(customer, dataset, way):
    answer = customer.upload(dataset, JPEG, "gate.jpg", way=way)
    assert answer.status_code == 201
    body = answer.json()
    assert body["message"] == "Content uploaded successfully"
    assert [(f["filename"], f["accepted"], f["type"]) for f in body["files"]] == [
        ("gate.jpg", True, "image")
    ]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_image_costs_75_hundredths_under_whatever_name(customer, image_format):
    name = customer.new_dataset()
    before = customer.balance()
    answer = customer.upload(name, mediafiles.image_bytes(image_format), "photo.jpg")
    assert answer.status_code == 201, answer.text
    assert answer.json()["files"][0]["type"] == "image"
    assert before - customer.balance() == 0.75
    assert customer.datasets()[name]["token_cost"] == 1.5


@FILE_WAYS
@pytest.mark.parametrize("surface", ["contract", "v1"])
def test_upload_may_be_far_larger_than_any_other_body(customer, dataset, surface, way):
    """A body that is parsed in memory ends at 10 MiB; an upload does not."""
    size_wh = (2400, 2100)  # 15 MB without compression
    large = mediafiles.image_bytes("BMP", mediafiles.corner_picture(size_wh))
    assert len(large) > 14_000_000
    if surface == "contract":
        answer = customer.upload(dataset, large, "large.bmp", way=way)
        assert answer.status_code == 201, answer.text
        assert answer.json()["accepted"] == 1
    else:
        dataset_id = customer.datasets()[dataset]["dataset_id"]
        path = way.path(f"/api/v1/datasets/{dataset_id}/uploads")
        answer = customer.send("POST", path, files={"file": ("large.bmp", large)})
        assert answer.status_code == 201, answer.text
        assert answer.json()["accepted"][0]["size_bytes"] == len(large)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_photograph_is_no_hindrance(customer, dataset, folder, orientation):
    photo = mediafiles.write_image(folder / "a.jpg", orientation=orientation)
    assert customer.upload(dataset, photo.read_bytes()).status_code == 201


@pytest.mark.parametrize(
    ("name", "frames"), [("a.mp4", 6), ("a.webm", 3), ("a.avi", 4), ("a.mkv", 1), ("a.gif", 5)]
)
def test_video_costs_half_a_token_a_frame(customer, folder, name, frames):
    dataset = customer.new_dataset()
    path = folder / name
    if name.endswith("gif"):
        mediafiles.write_gif(path, frames=frames)
    else:
        codec = "vp8" if name.endswith("webm") else "mpeg4"
        mediafiles.write_video(path, frames=frames, codec=codec)
    before = customer.balance()
    answer = customer.upload(dataset, path.read_bytes(), name)
    assert answer.status_code == 201, answer.text
    report = answer.json()["files"][0]
    assert (report["type"], report["frame_count"]) == ("video", frames)
    assert before - customer.balance() == 0.5 * frames
    assert customer.datasets()[dataset]["token_cost"] == 1.0 * frames


def test_gif_of_one_frame_is_an_image_and_of_two_a_video(customer, dataset, folder):
    for frames, kind, cost in ((1, "image", 0.75), (2, "video", 1.0)):
        gif = mediafiles.write_gif(folder / "a.gif", frames=frames)
        report = customer.upload(dataset, gif.read_bytes(), "a.gif").json()["files"][0]
        assert (report["type"], report["token_cost"]) == (kind, cost)


def test_good_files_of_a_zip_are_charged_and_bad_ones_reported(story):
    report = next(r for r in story.uploads if r["files"][0]["filename"] == "same.jpg")
    accepted = [f for f in report["files"] if f["accepted"]]
    refused = [f for f in report["files"] if not f["accepted"]]
    assert [f["filename"] for f in accepted] == [
        "same.jpg",
        "same.jpg",
        EMOJI,
    ]
    assert [(f["filename"], f["code"]) for f in refused] == [
        ("broken.jpg", "corrupt_file"),
        ("notes.txt", "unsupported_media_type"),
    ]
    assert all(f["error"] for f in refused)
    assert (report["accepted"], report["refused"], report["token_cost"]) == (3, 2, 2.25)


def test_balance_after_each_upload_is_right_to_the_last_quarter(story):
    names = ["at first", "street.jpg", "turned.jpg", "clip.mp4", "pictures.zip"]
    names += ["still.gif", "moving.gif", LONG, "doomed.tiff"]
    prices = [0, 0.75, 0.75, 0.5 * VIDEO_FRAMES, 3 * 0.75, 0.75, 3 * 0.5, 0.75, 0.75]
    expected, balance = [], 1000.0
    for price in prices:
        balance -= price
        expected.append(balance)
    assert [story.balances[name] for name in names] == expected


def test_700_images_travel_in_one_zip(customer, folder):
    dataset = customer.new_dataset()
    before = customer.balance()
    tiny = mediafiles.image_bytes("PNG", mediafiles.noise((8, 8)))
    archive = mediafiles.write_zip(
        folder / "many.zip", [(f"{number:03}.png", tiny) for number in range(700)]
    )
    answer = customer.upload(dataset, archive.read_bytes(), "many.zip")
    assert answer.status_code == 201, answer.text
    assert (answer.json()["accepted"], answer.json()["refused"]) == (700, 0)
    assert [f["filename"] for f in answer.json()["files"]] == [f"{n:03}.png" for n in range(700)]
    assert before - customer.balance() == 525.0
    assert customer.datasets()[dataset]["token_cost"] == 1050.0


def test_zip_that_the_balance_cannot_cover_is_402_and_leaves_nothing(newcomer, folder, service):
    dataset = newcomer.new_dataset()
    gif = mediafiles.write_gif(folder / "a.gif", frames=1999).read_bytes()
    archive = mediafiles.write_zip(
        folder / "dear.zip", [("a.jpg", JPEG), ("long.gif", gif), ("b.jpg", JPEG)]
    )
    before = stored_files(service)
    answer = newcomer.upload(dataset, archive.read_bytes(), "dear.zip")
    assert_short_of_tokens(answer, needed=1001.0, balance=1000.0)
    assert newcomer.wealth() == (1000.0, {dataset: 0.0})
    assert stored_files(service) == before
    affordable = mediafiles.write_zip(folder / "fair.zip", [("long.gif", gif)])
    assert newcomer.upload(dataset, affordable.read_bytes(), "fair.zip").status_code == 201
    assert newcomer.balance() == 0.5
    assert_short_of_tokens(newcomer.upload(dataset, JPEG), needed=0.75, balance=0.5)
    assert newcomer.balance() == 0.5


# -- refusals


def zipped(folder, *members, **options) -> bytes:
    return mediafiles.write_zip(folder / "made.zip", members, **options).read_bytes()


def symlink() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link.jpg")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


REFUSED = {
    "empty": (lambda folder: b"", 400),
    "truncated jpeg": (lambda folder: JPEG[: len(JPEG) // 2], 400),
    "only a head": (lambda folder: JPEG[:20], 400),
    "html named jpg": (lambda folder: b"<!DOCTYPE html><html><body>hi</body></html>", 415),
    "svg": (lambda folder: b'<svg xmlns="http://www.w3.org/2000/svg" width="9"/>', 415),
    "heic": (lambda folder: b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(600), 415),
    "text": (lambda folder: b"just words", 415),
    "pdf": (lambda folder: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", 415),
    "python pickle": (lambda folder: b"\x80\x04\x95\x10\0\0\0\0\0\0\0", 415),
    "playlist": (lambda folder: b"#EXTM3U\nhttp://127.0.0.1:1/a.ts\n", 415),
    "huge png": (lambda folder: mediafiles.write_huge_png(folder / "huge.png").read_bytes(), 422),
    "audio only": (lambda folder: mediafiles.write_audio(folder / "a.m4a").read_bytes(), 422),
    "empty zip": (zipped, 422),
    "zip of rubbish": (lambda folder: zipped(folder, ("a.txt", b"words")), 415),
    "cut zip": (lambda folder: zipped(folder, ("a.jpg", JPEG))[:-30], 400),
    "nested zip": (lambda folder: zipped(folder, ("a.zip", zipped(folder, ("a.jpg", JPEG)))), 422),
    "traversal": (lambda folder: zipped(folder, ("g.jpg", JPEG), ("../x.jpg", JPEG)), 422),
    "absolute path": (lambda folder: zipped(folder, ("/tmp/x.jpg", JPEG)), 422),
    "drive path": (lambda folder: zipped(folder, ("C:\\x.jpg", JPEG)), 422),
    "symlink": (lambda folder: zipped(folder, (symlink(), b"/etc/passwd")), 422),
    "bomb": (lambda folder: zipped(folder, ("a.jpg", bytes(200_000_000))), 422),
    "only litter": (lambda folder: zipped(folder, (".DS_Store", b"x"), ("__MACOSX/a", b"")), 422),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_file_costs_and_leaves_nothing(customer, dataset, service, folder, kind):
    make, status = REFUSED[kind]
    wealth, files = customer.wealth(), stored_files(service)
    problem = assert_problem(customer.upload(dataset, make(folder), "photo.jpg"), status)
    assert problem["errors"][0]["field"] == "file"
    assert customer.wealth() == wealth
    assert stored_files(service) == files
    assert not list((service.data_dir / "tmp").glob("od-upload-*"))


def test_litter_of_a_mac_in_a_zip_is_free_and_not_reported(customer, dataset, folder):
    before = customer.balance()
    content = zipped(folder, ("__MACOSX/._a.jpg", b"x"), ("a.jpg", JPEG), (".DS_Store", b"x"))
    report = customer.upload(dataset, content, "mac.zip").json()
    assert [f["filename"] for f in report["files"]] == ["a.jpg"]
    assert before - customer.balance() == 0.75


# -- requests that are no upload


def test_upload_without_a_file_is_400(customer, dataset):
    for way in (Way("json"), Way("form"), Way("multipart")):
        problem = assert_problem(
            customer.call("POST", "/upload", {"datasetName": dataset}, way), 400
        )
        assert [error["field"] for error in problem["errors"]] == ["file"]


@pytest.mark.parametrize("encoding", ["json", "form", "multipart"])
def test_file_as_a_text_field_is_400(customer, dataset, encoding):
    wealth = customer.wealth()
    keys = {"datasetName": dataset, "file": "a.jpg"}
    assert_problem(customer.call("POST", "/upload", keys, Way(encoding)), 400)
    assert customer.wealth() == wealth


def test_upload_without_a_dataset_is_400(customer):
    answer = customer.send("POST", "/upload", files={"file": ("a.jpg", JPEG)})
    problem = assert_problem(answer, 400)
    assert [error["field"] for error in problem["errors"]] == ["datasetName"]


def test_upload_of_several_files_is_400_and_takes_none(customer, dataset):
    wealth = customer.wealth()
    files = [("file", ("a.jpg", JPEG)), ("file", ("b.jpg", JPEG))]
    answer = customer.send("POST", "/upload", data={"datasetName": dataset}, files=files)
    assert "zip" in assert_problem(answer, 400)["message"]
    assert customer.wealth() == wealth


def test_upload_to_an_unknown_dataset_is_404(customer):
    before = customer.balance()
    assert_problem(customer.upload("never made", JPEG), 404, "DatasetNotFoundError")
    assert customer.balance() == before


def test_upload_to_somebody_elses_dataset_is_404_and_costs_nobody(customer, outsider, dataset):
    wealth = customer.wealth()
    assert_problem(outsider.upload(dataset, JPEG), 404, "DatasetNotFoundError")
    assert customer.wealth() == wealth
    assert outsider.balance() == 1000.0


# -- names


def part(disposition: bytes, content: bytes) -> bytes:
    return (
        b"--cut\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n"
    )


@pytest.mark.parametrize(
    ("disposition", "shown"),
    [
        (
            'filename="Straße \N{SNOWMAN} \N{GRINNING FACE}.jpg"',
            "Straße \N{SNOWMAN} \N{GRINNING FACE}.jpg",
        ),
        ("filename*=UTF-8''%e2%82%ac.jpg", "€.jpg"),
        ('filename="../../../etc/passwd.jpg"', "passwd.jpg"),
        ('filename="C:\\Users\\me\\a.jpg"', "a.jpg"),
        ('filename="/tmp/a.jpg"', "a.jpg"),
        ('filename="a\x01\x07b.jpg"', "ab.jpg"),
        ("filename*=UTF-8''a%0D%0AX-Evil%3A%201.jpg", "aX-Evil: 1.jpg"),
        ('filename="<script>alert(1)<\\/script>.jpg"', None),
        (f'filename="{"n" * 900}.jpg"', None),
        ('filename="no extension"', "no extension"),
        ('filename=".jpg"', ".jpg"),
    ],
    ids=lambda value: ascii(value)[:32],
)
def test_odd_file_name_is_a_label_and_never_a_path(customer, service, disposition, shown):
    dataset = customer.new_dataset()
    body = part(b'name="datasetName"', dataset.encode())
    body += part(b'name="file"; ' + disposition.encode(), JPEG) + b"--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    before = set(stored_files(service))
    answer = customer.send("POST", "/upload", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    name = answer.json()["files"][0]["filename"]
    if shown is not None:
        assert name == shown
    assert len(name) <= 1000
    assert not set(name) & set("\r\n\0")
    assert ".." not in name.split("/")
    made = set(stored_files(service)) - before
    assert len(made) == 2  # the file and its thumbnail, under names of the service's own
    assert {name.rpartition(".")[0].isalnum() for name in made} == {True}


def test_name_longer_than_any_file_system_allows_is_400(customer):
    dataset = customer.new_dataset()
    answer = customer.upload(dataset, JPEG, "n" * 5000 + ".jpg")
    assert_problem(answer, 400)
    assert customer.datasets()[dataset]["token_cost"] == 0.0


def test_password_given_as_a_file_is_400(anonymous, customer):
    files = {"email": (None, customer.email), "password": ("p.txt", PASSWORD.encode())}
    assert_problem(anonymous.send("POST", "/user", files=files), 400)


def test_other_keys_travel_beside_the_file(customer, dataset):
    keys = encoded({"datasetName": dataset, "user": "1", "price": "0"}, "form")["data"]
    before = customer.balance()
    answer = customer.send("POST", "/upload", data=keys, files={"file": ("a.jpg", JPEG)})
    assert answer.status_code == 201
    assert before - customer.balance() == 0.75

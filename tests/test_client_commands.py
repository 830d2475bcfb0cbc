"""The command-line client's commands, asked of the running service."""

import argparse
import io
import itertools
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image

from odproject.client.__main__ import run
from odproject.client.api import PIECE_BYTES, Api, _Watched
from odproject.client.commands import Asked, described, download, local_name
from odproject.client.session import SessionFile, session_path
from odproject.engines import wait_until
from tests import mediafiles
from tests.browser import PASSWORD, drawn_image, large_image

pytestmark = pytest.mark.service

REPOSITORY = Path(__file__).resolve().parent.parent

_numbers = itertools.count(1)


@dataclass
class Terminal:
    """Somebody who types commands, with a session of their own."""

    service_url: str
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    folder: Path

    def type(self, *words: object, status: int = 0, password: str = "") -> tuple[str, str]:
        """What a command prints, to stdout and to stderr."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        assert run([str(word) for word in words]) == status
        return self.capsys.readouterr()

    def document(self, *words: object) -> Any:
        """What it prints with `--json`, and nothing beside it."""
        out, error = self.type(*words, "--json")
        assert error == ""
        return json.loads(out)

    def sign_up(self) -> None:
        email = f"typist-{next(_numbers)}@example.org"
        self.type("login", email, "--service", self.service_url, "--register", password=PASSWORD)


@pytest.fixture
def terminal(service, monkeypatch, capsys, tmp_path) -> Terminal:
    monkeypatch.setenv("OD_SESSION_FILE", str(tmp_path / "settings" / "session.json"))
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(service.base_url, monkeypatch, capsys, tmp_path)
    terminal.sign_up()
    return terminal


def test_whole_way_from_a_folder_to_annotated_files(terminal):
    footage = terminal.folder / "footage"
    (footage / "later").mkdir(parents=True)
    drawn_image(footage / "street.jpg", seed=11)
    drawn_image(footage / "later" / "street.jpg", seed=12)
    (footage / ".hidden.jpg").write_bytes(b"nobody's")
    (footage / ".thumbnails").mkdir()
    drawn_image(footage / ".thumbnails" / "small.jpg", seed=11)
    (footage / "notes.txt").write_text("Not a picture.")

    out, error = terminal.type("upload", "street", "footage")
    assert out == "2 files accepted for 1.5 tokens, 1 file refused\n"
    assert error == (
        "refused notes.txt: The file is neither an image nor a video in a supported format, "
        "nor a zip archive.\n"
    )
    assert terminal.document("balance") == {
        "available_tokens": 998.5,
        "held_tokens": 0.0,
        "alert_below_tokens": None,
    }

    how = ("--option", "tiling=auto", "--deadline", 3600, "--wait")
    out, error = terminal.type("predict", "street", *how)
    assert "2 images and 0 video frames: at most 3 tokens\nJob " in error
    assert out.splitlines()[0].split() == [
        *("id", "state", "progress_percent", "dataset_name"),
        *("model_version", "quoted_tokens", "charged_tokens"),
    ]
    (job,) = terminal.document("jobs", "--state", "Completed")
    assert job["options"]["tiling"] == "auto"
    assert job["deadline_at"] > job["finished_at"]
    assert (job["quoted_tokens"], job["charged_tokens"]) == (3.0, 3.0)

    saved = terminal.document("download", job["id"], "--to", "found")
    assert saved == ["found/street.jpg", "found/street (2).jpg"]
    for path in saved:
        with Image.open(path) as picture:
            assert picture.size == (1280, 720)
    assert sorted(one.name for one in Path("found").iterdir()) == [
        "street (2).jpg",
        "street.jpg",
    ]

    exports = ("--export", "coco", "--export", "csv", "--export", "crops")
    found = terminal.document("download", job["id"], *exports)
    assert found == [
        f"job-{job['id']}/job-{job['id']}{suffix}"
        for suffix in (".coco.json", ".csv", ".crops.zip")
    ]
    with zipfile.ZipFile(found[2]) as crops:
        assert "car/street_frame_000000_object_001.jpg" in crops.namelist()
    every = json.loads(Path(found[0]).read_text())["annotations"]
    narrowed = terminal.document(
        *("download", job["id"], "--export", "coco", "--minimum-confidence", 0.99, "--to", "less")
    )
    assert len(every) > len(json.loads(Path(narrowed[0]).read_text())["annotations"])


def test_statement_of_a_month_is_shown_and_its_movements_are_saved(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    terminal.type("upload", "street", "a.jpg")
    (terminal.folder / "movements.csv").write_text("an older one")
    document = terminal.document("statement", "--csv", "movements.csv")
    assert document["closing"] == {"available_tokens": 999.25, "held_tokens": 0.0}
    *_, upload = (terminal.folder / "movements.csv").read_text().splitlines()
    assert upload.split(",")[1:6] == ["upload", "-0.75", "0", "999.25", "0"]
    assert [one.name for one in terminal.folder.glob(".*.part")] == []

    out, _ = terminal.type("statement", document["month"])
    assert [line.split() for line in out.splitlines()[:-1]] == [
        [document["month"], "available_tokens", "held_tokens"],
        ["opening", "0.00", "0.00"],
        ["welcome", "1,000.00", "0.00"],
        ["upload", "-0.75", "0.00"],
        ["closing", "999.25", "0.00"],
    ]
    _, error = terminal.type("statement", "2024-02", "--csv", "none.csv", status=1)
    assert error == "There is no statement of 2024-02.\n"
    assert not (terminal.folder / "none.csv").exists()
    _, error = terminal.type("statement", "--csv", ".", status=1)
    assert error.count("\n") == 1
    assert [one.name for one in terminal.folder.glob(".*.part")] == []


def test_key_takes_the_place_of_a_password_and_a_low_balance_is_told(terminal, monkeypatch):
    path = Path(os.environ["OD_SESSION_FILE"])
    with Api(SessionFile(path)) as api:
        key = api.post("/api/v1/api-keys/", {"name": "nightly"})["key"]
        api.log_out()
    httpx.patch(
        f"{terminal.service_url}/api/v1/balance/",
        headers={"Authorization": f"Bearer {key}"},
        json={"alert_below_tokens": 1000},
    ).raise_for_status()
    out, _ = terminal.type("login", "--key", "--service", terminal.service_url, password=key)
    assert out.startswith(f"Logged in at {terminal.service_url} as typist-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    drawn_image(terminal.folder / "a.jpg", seed=11)
    _, told = terminal.type("upload", "street", "a.jpg")
    assert told == "Your balance of 999.25 tokens is below 1,000.00.\n"
    terminal.type("logout")
    assert not path.exists()
    monkeypatch.setenv("OD_API_KEY", key)
    monkeypatch.setenv("OD_SERVICE", terminal.service_url)
    assert terminal.document("balance")["available_tokens"] == 999.25
    _, told = terminal.type("login", "--key", password="secret", status=1)
    assert told == "That is no API key: one begins with odk_.\n"


def test_files_that_are_there_already_are_not_paid_for_again(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    terminal.type("upload", "street", "a.jpg")
    drawn_image(terminal.folder / "b.jpg", seed=12)
    out, error = terminal.type("upload", "street", "a.jpg", "b.jpg", "--missing")
    assert out == "1 file accepted for 0.75 tokens\n"
    assert error == "Already there: 1 file\n"
    assert terminal.document("balance")["available_tokens"] == 998.5
    (dataset,) = terminal.document("datasets")
    assert (dataset["name"], dataset["image_count"]) == ("street", 2)


def test_zip_is_there_when_all_that_is_in_it_is(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    drawn_image(terminal.folder / "b.jpg", seed=12)

    def pack(*names: str) -> None:
        with zipfile.ZipFile(terminal.folder / "z.zip", "w") as archive:
            archive.mkdir("day")
            archive.writestr("__MACOSX/day/._a.jpg", b"left by a desktop")
            for name in names:
                archive.write(terminal.folder / name, f"day/{name}")

    pack("a.jpg")
    terminal.type("upload", "street", "z.zip", "--missing")
    out, error = terminal.type("upload", "street", "z.zip", "--missing")
    assert (out, error) == ("0 files accepted for 0 tokens\n", "Already there: 1 file\n")
    assert terminal.document("balance")["available_tokens"] == 999.25
    pack("a.jpg", "b.jpg")
    out, _ = terminal.type("upload", "street", "z.zip", "--missing")
    assert out == "2 files accepted for 1.5 tokens\n"


def test_odd_names_are_sent_and_known_again(terminal):
    for name in (b'q"uote.jpg', b"latin-\xe9.jpg", "straße 街.jpg".encode()):
        drawn_image(terminal.folder / "drawn.jpg", seed=len(name))
        (terminal.folder / "drawn.jpg").rename(terminal.folder / os.fsdecode(name))
    files = sorted(terminal.folder.glob("*.jpg"))
    out, _ = terminal.type("upload", "street", *files)
    assert out == "3 files accepted for 2.25 tokens\n"
    _, error = terminal.type("upload", "street", *files, "--missing")
    assert error == "Already there: 3 files\n"


def test_file_that_cannot_be_read_ends_the_upload_and_says_what_was_accepted(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    (terminal.folder / "b.jpg").touch()
    original = Path.open

    def unreadable(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "b.jpg":
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **options)

    terminal.monkeypatch.setattr(Path, "open", unreadable)
    _, error = terminal.type("upload", "street", "a.jpg", "b.jpg", status=1)
    assert error == "b.jpg: [Errno 13] Permission denied\nAccepted before it: 1 file.\n"


def test_balance_that_is_spent_ends_the_upload_and_says_what_was_accepted(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    frames = 2000  # 1000 tokens; the picture before them has cost 0.75
    mediafiles.write_video(terminal.folder / "b.mp4", frames=frames, size_wh=(32, 32))
    drawn_image(terminal.folder / "c.jpg", seed=12)
    out, error = terminal.type("upload", "street", "a.jpg", "b.mp4", "c.jpg", status=1)
    assert out == ""
    assert error.startswith("b.mp4: ")
    assert error.endswith("\nAccepted before it: 1 file.\n")
    (dataset,) = terminal.document("datasets")
    assert (dataset["image_count"], dataset["frame_count"]) == (1, 0)


def test_job_above_the_limit_is_not_started(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    terminal.type("upload", "street", "a.jpg")
    out, error = terminal.type("predict", "street", "--maximum-tokens", 1.49, status=1)
    assert out == ""
    assert error.endswith("That is more than 1.49 tokens: no job was started.\n")
    assert terminal.document("jobs") == []
    assert terminal.document("balance")["held_tokens"] == 0.0


def test_job_that_was_aborted_is_tried_again_at_the_price_of_its_rest(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    mediafiles.write_video(terminal.folder / "b.mp4", frames=300, size_wh=(640, 360))
    terminal.type("upload", "street", "a.jpg", "b.mp4")
    job = terminal.document("predict", "street", "--option", "frame_stride=100", "--wait")
    _, told = terminal.type("retry", job["id"], status=1)
    assert (
        f"Every file of job {job['id']} was done, is a later job's, or was deleted since." in told
    )

    job = terminal.document("predict", "street")
    undone = terminal.document("abort", job["id"])
    assert undone["state"] == "Aborted"
    terms = ("--maximum-tokens", 299, "--wait")
    _, told = terminal.type("retry", job["id"], *terms, status=1)
    assert told.endswith("That is more than 299 tokens: no job was started.\n")
    again = terminal.document("retry", job["id"], "--deadline", 3600)
    assert (again["rerun_of_id"], again["deadline_at"] is None) == (job["id"], False)
    assert again["quoted_tokens"] == 300 + sum(
        1.5 for file in undone["files"] if file["type"] == "image" and file["state"] == "aborted"
    )
    terminal.type("abort", again["id"])


def test_option_that_does_not_exist_is_named(terminal):
    drawn_image(terminal.folder / "a.jpg", seed=11)
    terminal.type("upload", "street", "a.jpg")
    _, error = terminal.type("predict", "street", "--option", "tilling=auto", status=1)
    assert "tilling" in error
    assert terminal.document("jobs") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "nowhere"), "There is no dataset 'nowhere'.\n"),
        (("upload", "street", "nothing.jpg"), "nothing.jpg is neither a file nor a folder.\n"),
        (("download", "1", "--class-name", "car"), "Annotated files cannot be narrowed"),
        (("job", "999999"), "You have no job 999999"),
        (("download", "999999"), "You have no job 999999"),
        (("abort", "999999"), "You have no job 999999"),
        (("retry", "999999"), "You have no job 999999"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(terminal, words, said):
    out, error = terminal.type(*words, status=1)
    assert (out, error[: len(said)]) == ("", said)
    assert [one.name for one in terminal.folder.iterdir()] == ["settings"]
    assert terminal.document("datasets") == []


def test_command_that_is_not_understood_exits_with_2(terminal, capsys):
    with pytest.raises(SystemExit) as exited:
        run(["predict", "street", "--option", "tiling"])
    assert exited.value.code == 2
    assert "'tiling' is not NAME=VALUE" in capsys.readouterr().err


def test_interrupted_upload_says_what_was_accepted(terminal):
    for name in ("a.jpg", "b.jpg"):
        drawn_image(terminal.folder / name, size_wh=(320, 180))
    whole, calls = Api.upload, []

    def press_ctrl_c_at_the_second(self, dataset_id, path, on_bytes):
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, dataset_id, path, on_bytes)

    terminal.monkeypatch.setattr(Api, "upload", press_ctrl_c_at_the_second)
    out, error = terminal.type("upload", "street", "a.jpg", "b.jpg", status=130)
    told = "\nInterrupted in b.jpg, of which nobody knows. Accepted before it: 1 file.\n"
    assert (out, error) == ("", told)
    (dataset,) = terminal.document("datasets")
    assert dataset["image_count"] == 1


def test_large_upload_goes_on_in_the_next_command_and_is_charged_once(terminal):
    picture = large_image(terminal.folder / "large.bmp")
    sent, whole_pieces = [], _Watched.pieces

    def press_ctrl_c_in_the_second(self, length_bytes):
        sent.append(self.tell())
        for number, data in enumerate(whole_pieces(self, length_bytes)):
            if len(sent) == 2 and number == 16:
                raise KeyboardInterrupt
            yield data

    terminal.monkeypatch.setattr(_Watched, "pieces", press_ctrl_c_in_the_second)
    _, error = terminal.type("upload", "street", "large.bmp", status=130)
    told = "Interrupted in large.bmp, which goes on there the next time."
    assert error == f"\n{told} Accepted before it: 0 files.\n"
    assert terminal.document("balance")["available_tokens"] == 1000
    (dataset,) = terminal.document("datasets")
    places = f"/api/v1/datasets/{dataset['id']}/resumable-uploads/"

    def arrived() -> int:
        with Api(SessionFile(session_path())) as service:
            (found,) = service.every(places)
        return found["offset_bytes"]

    # What came of the second piece counts, as soon as the service has seen that it broke.
    assert wait_until(lambda: arrived() > PIECE_BYTES, timeout_seconds=30)
    begun = arrived()
    assert begun < 2 * PIECE_BYTES
    out, _ = terminal.type("upload", "street", "large.bmp")
    assert out == "1 file accepted for 0.75 tokens\n"
    assert sent == [0, PIECE_BYTES, begun, begun + PIECE_BYTES]
    assert terminal.document("balance")["available_tokens"] == 999.25
    with Api(SessionFile(session_path())) as service:
        (media_file,) = service.every(f"/api/v1/datasets/{dataset['id']}/media-files/")
        assert list(service.every(places)) == []
    assert media_file["size_bytes"] == picture.stat().st_size


def test_interrupted_wait_says_that_the_job_goes_on(terminal):
    drawn_image(terminal.folder / "a.jpg", size_wh=(320, 180))
    terminal.type("upload", "street", "a.jpg")

    def press_ctrl_c(seconds):
        raise KeyboardInterrupt

    with terminal.monkeypatch.context() as patch:
        patch.setattr("odproject.client.commands.time.sleep", press_ctrl_c)
        out, error = terminal.type("predict", "street", "--wait", "--json", status=130)
    (job,) = terminal.document("jobs")
    number = job["id"]
    told = f"\nJob {number} goes on: `job {number} --wait`, or `abort {number}`.\n"
    assert (out, error) == ("", told)
    assert terminal.document("job", number, "--wait")["state"] == "Completed"


def test_download_overwrites_nothing(terminal):
    drawn_image(terminal.folder / "a.jpg", size_wh=(320, 180))
    terminal.type("upload", "street", "a.jpg")
    job = terminal.document("predict", "street", "--wait")
    original = (terminal.folder / "a.jpg").read_bytes()
    assert terminal.document("download", job["id"], "--to", ".") == ["a (2).jpg"]
    assert (terminal.folder / "a.jpg").read_bytes() == original


@pytest.mark.parametrize("tokens", ["nan", "-1", "many"])
def test_limit_that_is_no_number_of_tokens_is_not_understood(terminal, capsys, tokens):
    with pytest.raises(SystemExit) as exited:
        run(["predict", "street", f"--maximum-tokens={tokens}"])
    assert exited.value.code == 2
    assert f"'{tokens}'" in capsys.readouterr().err


def test_reader_that_has_read_enough_is_no_error_of_ours(terminal):
    words = [sys.executable, "-m", "odproject.client", "models", "--json"]
    client = subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    client.stdout.close()
    with client.stderr as error:
        assert error.read() == ""
    assert client.wait() == 1


def test_log_in_with_a_wrong_password_begins_no_session(terminal):
    terminal.type("logout")
    words = ("login", "typist-1@example.org", "--service", terminal.service_url)
    _, error = terminal.type(*words, status=1, password="something else")
    assert error
    _, error = terminal.type("balance", status=1)
    assert error == "Nobody is logged in: `login EMAIL` comes first.\n"


def test_log_out_ends_the_tokens_too(terminal):
    session = json.loads((terminal.folder / "settings" / "session.json").read_text())
    terminal.type("logout")
    (terminal.folder / "settings" / "session.json").write_text(json.dumps(session))
    _, error = terminal.type("balance", status=1)
    assert error == "The session has ended: `login EMAIL` again.\n"
    assert terminal.type("logout") == ("Logged out\n", "")
    assert not (terminal.folder / "settings" / "session.json").exists()


@pytest.mark.parametrize(
    ("state", "position", "told"),
    [
        ("Pending", 1, "Job 7 pending"),
        ("Pending", 2, "Job 7 pending, 1 turn before it"),
        ("Pending", 4, "Job 7 pending, 3 turns before it"),
        ("Running", None, "Job 7 running"),
    ],
)
def test_job_that_waits_tells_of_the_turns_before_it(state, position, told):
    assert described({"id": 7, "state": state, "queue_position": position}) == told


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a.jpg", "a.jpg"),
        (".bashrc", "bashrc"),
        ("..", "file"),
        ("", "file"),
        ("a\nb.jpg", "a_b.jpg"),
        ("x" * 300 + ".jpg", "x" * 236 + ".jpg"),
        ("街" * 120 + ".jpg", "街" * 78 + ".jpg"),
    ],
)
def test_name_from_the_network_stays_in_its_folder(told, kept, tmp_path):
    assert local_name(told) == kept
    (tmp_path / kept).touch()  # no name is too long for a file


def test_two_downloads_into_one_folder_do_not_meet(tmp_path, monkeypatch):
    """The second begins while the first is under way."""
    monkeypatch.chdir(tmp_path)

    class Played:
        def __init__(self, content: bytes, meanwhile: Callable[[], object]) -> None:
            self._content, self._meanwhile = content, meanwhile

        def get(self, path: str) -> None:
            pass

        def download(self, path: str, destination: Path) -> str:
            with destination.open("wb") as out:
                out.write(self._content[:3])
                out.flush()
                self._meanwhile()
                out.write(self._content[3:])
            return path

    def save(name: str, content: bytes, meanwhile: Callable[[], object]) -> None:
        options = argparse.Namespace(
            job=1, to=Path(), export=[name], minimum_confidence=None, class_name=None, json=True
        )
        download(Asked(options, cast(Api, Played(content, meanwhile))))

    save("csv", b"of the first", lambda: save("coco", b"of the second", list))
    found = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert found == {"csv": b"of the first", "coco": b"of the second"}

"""The dashboard, used in a real browser against the running service."""

import json
import re
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, WebSocketRoute, expect

from tests.browser import (
    PASSWORD,
    HeldRequests,
    LateAnswer,
    alter_answers,
    chromium,
    create_dataset,
    drawn_image,
    drawn_video,
    drop_paths,
    large_image,
    let_page_read,
    log_out,
    sign_up,
    sign_up_by_form,
    start_job,
    upload,
)
from tests.service import Service

pytestmark = pytest.mark.service

JOB_TIMEOUT_MS = 120_000


@pytest.fixture(scope="module")
def browser():
    # Only for this module: Django refuses database work in a thread where Playwright's loop runs.
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    yield page
    context.close()


class Traffic:
    """Everything that a page asks for, hears on its websocket, and complains about."""

    def __init__(self, page: Page) -> None:
        self.urls: list[str] = []
        self.heard: list[dict] = []
        self.complaints: list[tuple[str, str]] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("websocket", self._listen)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(("page", str(error))))

    def _listen(self, socket) -> None:
        self.urls.append(socket.url)
        socket.on("framereceived", lambda payload: self.heard.append(json.loads(payload)))

    def _note(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append((message.location["url"], message.text))

    @property
    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.urls if not url.startswith("blob:")}

    def kinds_of(self, job_id: int) -> list[str]:
        return [one["kind"] for one in self.heard if one.get("job_id") == job_id]


def unique_email() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.com"


def number_of(card) -> int:
    return int(card.get_attribute("data-job"))


def session_of(page: Page) -> dict:
    return json.loads(page.evaluate("localStorage.getItem('odproject.session')"))


def movements(page: Page) -> list[tuple[str, str]]:
    """Kind and amount of each movement that the open dialog shows."""
    rows = page.locator("#movements tr").all()
    amounts = [row.locator("td.number").inner_text() for row in rows]
    plain = [told.replace("\N{MINUS SIGN}", "-") for told in amounts]
    return [(row.get_attribute("data-kind"), told) for row, told in zip(rows, plain, strict=True)]


def answer_first_post(
    page: Page, address: str | re.Pattern[str], answer: Callable[[Route], None]
) -> list[str]:
    """Answer the first POST to an address in the service's stead, and let all else through.

    Returns the idempotency keys of the POSTs, as they come.
    """
    keys: list[str] = []

    def see(route: Route) -> None:
        if route.request.method == "POST":
            keys.append(route.request.headers["idempotency-key"])
            if len(keys) == 1:
                answer(route)
                return
        route.continue_()

    page.route(address, see)
    return keys


def watch_annotated_files(page: Page) -> None:
    """See the annotated picture (1280 pixels wide) and play the annotated video (640 wide)."""
    picture, video = page.locator("figure img"), page.locator("figure video")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("naturalWidth", 1280)
    video.scroll_into_view_if_needed()
    expect(video).to_have_js_property("readyState", 4)
    expect(video).to_have_js_property("videoWidth", 640)
    video.evaluate("element => element.play()")
    expect(video).not_to_have_js_property("currentTime", 0)
    expect(video).to_have_js_property("error", None)


def wait_for_greetings(page: Page, traffic: Traffic, count: int) -> None:
    """Return when so many sockets of a tab have been greeted with the list of jobs."""
    for _ in range(1800):
        if sum("jobs" in message for message in traffic.heard) >= count:
            return
        page.wait_for_timeout(100)
    pytest.fail(f"Not {count} sockets, but this was heard: {traffic.heard}")


def see_movements_of_the_journey(page: Page) -> None:
    """A picture and three frames were uploaded and processed; every amount is shown."""
    page.get_by_role("button", name="993.25 tokens").click()
    expect(page.locator("#available-tokens")).to_have_text("993.25")
    expect(page.locator("#held-tokens")).to_have_text("0")
    expect(page.locator("#movements tr")).to_have_count(5)
    assert movements(page) == [
        ("capture", "0"),
        ("hold", "-4.5"),
        ("upload", "-1.5"),
        ("upload", "-0.75"),
        ("welcome", "+1,000"),
    ]
    expect(page.locator("#movements tr").first).to_contain_text("4.5 of the tokens held before")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="993.25 tokens")).to_be_focused()


def download_everything(page: Page, card) -> None:
    """Take the annotated files of the journey away, and its boxes."""
    with page.expect_download() as downloading:
        card.get_by_role("button", name="Download everything (zip)").click()
    with zipfile.ZipFile(downloading.value.path()) as archive:
        assert archive.namelist() == ["street.jpg", "a.mp4"]
        assert archive.testzip() is None
    formats = card.get_by_role("combobox", name="Format of the boxes")
    expect(formats.locator("option")).to_have_text(["COCO", "YOLO", "CSV", "JSON lines", "Crops"])
    formats.select_option("CSV")
    with page.expect_download() as downloading:
        card.get_by_role("button", name="Download boxes").click()
    assert downloading.value.suggested_filename == f"job-{number_of(card)}.csv"
    assert "street.jpg" in downloading.value.path().read_text()


def test_person_goes_from_signing_up_to_annotated_files(page, service, tmp_path):
    traffic = Traffic(page)
    email = unique_email()
    sign_up_by_form(page, service.base_url, email)
    page.evaluate("window.neverReloaded = true")
    expect(page.locator("#balance")).to_have_text("1,000")
    expect(page.locator("#email")).to_have_text(email)

    create_dataset(page, "Old bridge", "drone, morning")
    expect(page.locator("#datasets")).to_contain_text("#drone · #morning")
    expect(page.get_by_role("button", name="Start detection")).to_be_disabled()

    report = upload(page, drawn_image(tmp_path / "street.jpg"), drawn_video(tmp_path / "a.mp4", 3))
    expect(report.locator("li:not(.refused)")).to_have_count(2)
    expect(report).to_contain_text("Image, 0.75 tokens")
    expect(report).to_contain_text("Video, 3 frames, 1.5 tokens")
    expect(page.locator("#balance")).to_have_text("997.75")
    expect(page.locator("#quote")).to_contain_text("Price: 4.5 tokens")

    notes = tmp_path / "notes.jpg"
    notes.write_text("not a picture")
    report = upload(page, notes)
    expect(report.locator("li.refused")).to_have_count(1)
    expect(report.locator("li.refused")).to_contain_text(re.compile(r"notes\.jpgRefused: \w+"))
    expect(page.locator("#balance")).to_have_text("997.75")

    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(page.locator("#balance")).to_have_text("993.25")
    expect(card).to_contain_text("Charged 4.5 tokens.")
    expect(page.locator("#connection")).to_have_text("Live")
    kinds = traffic.kinds_of(number_of(card))
    assert kinds[0] == "job.started"
    assert "job.progress" in kinds
    assert kinds.count("job.completed") == 1

    rows = card.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator(".chip").first).to_have_text(re.compile(r"^[1-9]\d* \W car$"))
    expect(rows.nth(1)).to_contain_text("at most in one of 3 frames")
    watch_annotated_files(page)

    see_movements_of_the_journey(page)
    download_everything(page, card)

    assert page.evaluate("window.neverReloaded") is True
    assert traffic.hosts == {urlsplit(service.base_url).netloc}
    assert not [url for url in [*traffic.urls, page.url] if "eyJ" in url]  # as every JWT begins
    asked = {urlsplit(url).path for url in traffic.urls if not url.startswith("blob:")} - {"/"}
    assert [path for path in asked if not path.startswith(("/api/v1/", "/static/"))] == []
    # A browser itself complains about every refusal by a server; there was one, of the bad file.
    assert [urlsplit(url).path.split("/")[-2] for url, _ in traffic.complaints] == ["uploads"]


def test_archive_is_reported_file_by_file(page, service, tmp_path):
    archive = tmp_path / "flight.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.write(drawn_image(tmp_path / "good.jpg", size_wh=(640, 360)), "day/good.jpg")
        target.writestr("day/readme.txt", "words")
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Archive")
    report = upload(page, archive)
    expect(report.locator("h4")).to_have_text(
        "1 file accepted for 0.75 tokens, 1 file refused, free of charge"
    )
    expect(report.locator("li.refused")).to_contain_text("flight.zip: day/readme.txtRefused: ")
    expect(report.locator("li:not(.refused)")).to_contain_text("flight.zip: day/good.jpgImage")
    assert traffic.complaints == []


def test_files_dropped_on_the_page_are_uploaded(page, service, tmp_path):
    picture = drawn_image(tmp_path / "dropped.jpg", size_wh=(640, 360))
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Dropped")
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.jpg"));
            return transfer;
        }""",
        list(picture.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#report li:not(.refused)")).to_contain_text("dropped.jpgImage")
    expect(page.locator("#balance")).to_have_text("999.25")


def test_slow_upload_shows_its_progress_and_can_be_cancelled(page, service, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Slow line")
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    network.send("Network.emulateNetworkConditions", slow)

    page.get_by_label("Choose files").set_input_files(tmp_path / "noise.png")
    label, bar = page.locator("#upload-label"), page.locator("#upload-progress")
    expect(label).to_have_text(re.compile(r"Uploading noise\.png \W ([1-9]|[1-8]\d)%"))
    assert 0 < bar.evaluate("element => element.value") < 100
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#report li.refused")).to_contain_text("noise.pngRefused: Cancelled.")
    expect(page.locator("#uploading")).to_be_hidden()
    expect(page.locator("#datasets")).to_contain_text("Empty")
    expect(page.locator("#balance")).to_have_text("1,000")


UPLOADS = re.compile(r"/api/v1/datasets/\d+/uploads/$")


class HeldUploads:
    """Holds back the first upload of a page, and notes to which datasets all of them go."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(UPLOADS, self._hold)

    def _hold(self, route: Route) -> None:
        if route.request.method == "POST":
            self._routes.append(route)
        if self._routes[:1] != [route]:
            route.continue_()

    @property
    def dataset_ids(self) -> list[str]:
        return [urlsplit(route.request.url).path.split("/")[-3] for route in self._routes]

    @property
    def keys(self) -> list[str]:
        return [route.request.headers["idempotency-key"] for route in self._routes]

    @property
    def first(self) -> Route:
        while not self._routes:
            self._page.wait_for_timeout(50)
        return self._routes[0]


def asks_before_leaving(page: Page) -> bool:
    leaves = "window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    return not page.evaluate(leaves)


def test_files_chosen_during_an_upload_wait_and_go_where_they_were_meant(page, service, tmp_path):
    a, b, c, d = (
        drawn_image(tmp_path / f"{name}.jpg", seed, size_wh=(320, 180))
        for seed, name in enumerate("abcd")
    )
    uploads = HeldUploads(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "First")
    create_dataset(page, "Second")
    first, second = (page.get_by_role("radio", name=name) for name in ("First", "Second"))
    ids = [radio.get_attribute("value") for radio in (first, second)]
    announcer, label = page.locator("#announcer"), page.locator("#upload-label")
    files = page.get_by_label("Choose files")
    assert not asks_before_leaving(page)

    first.check()
    files.set_input_files([a, b])
    expect(label).to_contain_text("Uploading a.jpg (1 of 2)")
    expect(announcer).to_have_text("Uploading 2 files.")
    second.check()
    files.set_input_files(c)
    expect(announcer).to_have_text("Waiting to be uploaded: 1 file.")
    expect(label).to_contain_text("Uploading a.jpg (1 of 3)")
    drop_paths(page, d)
    expect(label).to_contain_text("Uploading a.jpg (1 of 4)")
    first.check()
    assert asks_before_leaving(page)
    uploads.first.continue_()
    report = page.locator("#report")
    expect(report.locator("h4")).to_have_text("4 files accepted for 3 tokens", timeout=60_000)
    expect(report.locator("li")).to_have_text(
        [re.compile(rf"^{name}\.jpgImage, 0\.75 tokens$") for name in "abcd"]
    )
    expect(page.locator("#uploading")).to_be_hidden()
    assert not asks_before_leaving(page)
    assert uploads.dataset_ids == [ids[0], ids[0], ids[1], ids[1]]
    assert len(set(uploads.keys)) == 4
    expect(page.locator("#datasets label")).to_have_text(
        ["Second" + "2 pictures", "First" + "2 pictures"]
    )
    expect(page.locator("#balance")).to_have_text("997")
    expect(report.locator("li")).to_have_count(4)


def test_report_stays_when_another_dataset_is_looked_at_meanwhile(page, service, tmp_path):
    uploads = HeldUploads(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Second")
    create_dataset(page, "First")
    page.get_by_label("Choose files").set_input_files(
        drawn_image(tmp_path / "a.jpg", size_wh=(320, 180))
    )
    expect(page.locator("#upload-label")).to_contain_text("Uploading a.jpg")
    page.get_by_role("radio", name="Second").check()
    uploads.first.continue_()
    expect(page.locator("#datasets")).to_contain_text("1 picture")
    expect(page.locator("#uploading")).to_be_hidden()
    expect(page.locator("#report li")).to_have_text(["a.jpgImage, 0.75 tokens"])
    expect(page.locator("#announcer")).to_have_text("1 file accepted for 0.75 tokens")
    page.get_by_role("radio", name="First").check()
    expect(page.locator("#report li")).to_have_count(1)


@pytest.mark.parametrize("end", ["cancel", "log out"])
def test_end_of_an_upload_is_the_end_of_what_waits_behind_it(page, service, tmp_path, end):
    pictures = [drawn_image(tmp_path / f"{name}.jpg", size_wh=(320, 180)) for name in "abc"]
    uploads = HeldUploads(page)
    email = unique_email()
    sign_up(page, service.base_url, email)
    create_dataset(page, "Given up")
    page.get_by_label("Choose files").set_input_files(pictures[:2])
    page.get_by_label("Choose files").set_input_files(pictures[2])
    expect(page.locator("#announcer")).to_have_text("Waiting to be uploaded: 1 file.")
    assert uploads.first
    if end == "cancel":
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#report h4")).to_have_text("1 file refused, free of charge")
        expect(page.locator("#report li")).to_have_text(["a.jpg" + "Refused: Cancelled."])
        expect(page.locator("#uploading")).to_be_hidden()
        assert not asks_before_leaving(page)
    else:
        log_out(page)  # without a question whether to leave
        page.get_by_label("E-mail address").fill(email)
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#datasets label")).to_have_text(["Given up" + "Empty"])
    expect(page.locator("#balance")).to_have_text("1,000")
    assert len(uploads.keys) == 1


def test_upload_cancelled_before_it_is_sent_is_never_sent(page, service, tmp_path):
    uploads = HeldUploads(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Given up")
    renewals = HeldRequests(page, "**/api/v1/tokens/refresh/")
    page.evaluate(
        """() => {
            const session = JSON.parse(localStorage.getItem("odproject.session"));
            const old = { ...session, renewAt: 0 };
            localStorage.setItem("odproject.session", JSON.stringify(old));
        }"""
    )
    picture = drawn_image(tmp_path / "a.jpg", size_wh=(320, 180))
    page.get_by_label("Choose files").set_input_files(picture)
    renewal = renewals.take()
    page.get_by_role("button", name="Cancel").click()
    renewal.continue_()
    expect(page.locator("#report li")).to_have_text(["a.jpg" + "Refused: Cancelled."])
    expect(page.locator("#uploading")).to_be_hidden()
    assert uploads.keys == []


def test_what_the_browser_cannot_read_is_refused_without_being_sent(page, service, tmp_path):
    cannot = (
        "Refused: The browser cannot read it. A folder? Zip it first. "
        "A file may have been moved, changed or deleted since."
    )
    folder = tmp_path / "flight"
    folder.mkdir()
    drawn_image(folder / "inside.jpg", size_wh=(320, 180))
    kept, gone = (drawn_image(tmp_path / name, size_wh=(320, 180)) for name in ("a.jpg", "b.jpg"))
    uploads = HeldUploads(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Unreadable")
    title, lines = page.locator("#report h4"), page.locator("#report li")
    drop_paths(page, folder)
    expect(title).to_have_text("1 file refused, free of charge")
    expect(lines).to_have_text(["flight" + cannot])
    assert uploads.keys == []

    page.get_by_label("Choose files").set_input_files([kept, gone])
    held = uploads.first
    gone.unlink()
    held.continue_()
    expect(title).to_have_text("1 file accepted for 0.75 tokens, 1 file refused, free of charge")
    expect(lines).to_have_text(["a.jpg" + "Image, 0.75 tokens", "b.jpg" + cannot])
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    expect(page.locator("#balance")).to_have_text("999.25")
    assert len(uploads.keys) == 1


def test_names_never_become_elements_of_the_page(page, service, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    traffic = Traffic(page)
    page.on("dialog", lambda dialog: traffic.complaints.append(("dialog", dialog.message)))
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, hostile, "<script>alert(2)</script>")
    picture = drawn_image(tmp_path / f"{hostile}.jpg", size_wh=(640, 360))
    report = upload(page, picture)
    expect(report).to_contain_text(f"{hostile}.jpg")
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(card.locator("tbody th")).to_have_text(f"{hostile}.jpg")
    assert page.locator("main img[src='x'], main script").count() == 0
    assert traffic.complaints == []


def test_job_is_followed_by_asking_while_the_websocket_is_down(page, service, tmp_path):
    asked: list[str] = []
    down = True

    def route(socket: WebSocketRoute) -> None:
        asked.append(parse_qs(urlsplit(socket.url).query)["ticket"][0])
        if down:
            socket.close(code=1011)
        else:
            socket.connect_to_server()

    sign_up(page, service.base_url, unique_email())
    expect(page.locator("#connection")).to_have_text("Live")
    create_dataset(page, "Tunnel")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(640, 360)))

    page.route_web_socket(re.compile("."), route)
    page.reload()
    expect(page.locator("#connection")).to_contain_text("Connecting again")
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(page.locator("#balance")).to_have_text("997.75")
    expect(page.locator("#connection")).to_contain_text("Connecting again")

    down = False
    expect(page.locator("#connection")).to_have_text("Live", timeout=60_000)
    expect(card.locator(".state")).to_have_text("Completed")
    assert len(asked) > 1
    assert len(set(asked)) == len(asked)


def test_reconnection_asks_for_what_was_missed(page, service, tmp_path):
    sockets: list[WebSocketRoute] = []

    def route(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.connect_to_server()

    page.route_web_socket(re.compile("."), route)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Tunnel")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(640, 360)))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(page.locator("#connection")).to_have_text("Live")

    sockets[0].close(code=1001)
    expect(page.locator("#connection")).to_contain_text("Connecting again")
    expect(page.locator("#connection")).to_have_text("Live", timeout=60_000)
    first, second = (parse_qs(urlsplit(socket.url).query) for socket in sockets)
    assert "since" not in first
    # The upload is the first event, then the job's submission, start and completion.
    assert second["since"] == ["4"]
    assert second["ticket"] != first["ticket"]


def test_refusals_are_told_in_the_service_s_own_words(page, service):
    email = unique_email()
    page.goto(service.base_url)
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("Wrong e-mail address or password.")

    sign_up(page, service.base_url, email)
    create_dataset(page, "Twice")
    page.get_by_text("New dataset…").click()
    page.get_by_label("Name (3 to 40 characters)").fill("Twice")
    page.get_by_role("button", name="Create dataset").click()
    expect(page.locator("#create-alert")).to_have_text("You have a dataset named Twice already.")
    expect(page.locator("#datasets label")).to_have_count(1)


def test_dataset_gets_another_name_and_other_tags(page, service):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Taken")
    create_dataset(page, "First name", "drone")
    page.get_by_role("button", name="Rename or tag").click()
    expect(page.locator("#change-tags")).to_have_value("drone")
    page.get_by_label("Name", exact=True).fill("Taken")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#change-alert")).to_have_text("You have a dataset named Taken already.")
    page.get_by_label("Name", exact=True).fill("Second name")
    page.locator("#change-tags").fill("bridge, night, bridge")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Second name", exact=True)).to_be_visible()
    expect(page.locator("#datasets")).to_contain_text("Second name" + "Empty · #bridge · #night")
    expect(page.locator("#datasets label")).to_have_count(2)
    page.reload()
    expect(page.locator("#datasets")).to_contain_text("#bridge · #night")
    expect(page.locator("#datasets")).not_to_contain_text("First name")


def test_late_list_of_datasets_does_not_send_uploads_elsewhere(page, service, tmp_path):
    a, b = (drawn_image(tmp_path / name, size_wh=(320, 180)) for name in ("a.jpg", "b.jpg"))
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "First")
    late = LateAnswer(page, re.compile(r"/api/v1/datasets/\?"))
    upload(page, a)
    late.wait_until_held()
    create_dataset(page, "Second")
    expect(page.locator("#datasets label")).to_have_text(["SecondEmpty", "First1 picture"])
    late.arrive()
    expect(page.locator("#dataset-title")).to_have_text("Second")
    expect(page.locator("#datasets label")).to_have_text(["SecondEmpty", "First1 picture"])
    upload(page, b)
    expect(page.locator("#datasets label")).to_have_text(["Second1 picture", "First1 picture"])


def test_late_balance_does_not_replace_a_newer_one(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Balance")
    expect(page.locator("#balance")).to_have_text("1,000")
    late = LateAnswer(page, re.compile(r"/api/v1/balance/$"))
    page.locator("#open-tokens").click()
    late.wait_until_held()
    page.keyboard.press("Escape")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    expect(page.locator("#balance")).to_have_text("999.25")
    late.arrive()
    expect(page.locator("#balance")).to_have_text("999.25")
    expect(page.locator("#available-tokens")).to_have_text("999.25")


def test_dataset_is_deleted_only_after_a_question(page, service):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Kept")
    create_dataset(page, "Deleted")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#datasets label")).to_have_count(2)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="Delete Deleted?")).to_be_visible()
    page.get_by_role("button", name="Delete dataset").click()
    expect(page.locator("#datasets label")).to_have_count(1)
    expect(page.get_by_role("heading", name="Kept", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Kept", exact=True)).to_be_visible()
    expect(page.locator("#datasets label")).to_have_count(1)


def test_blocked_dataset_says_why_and_takes_nothing(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Blocked")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(640, 360)))
    expect(page.get_by_role("button", name="Start detection")).to_be_enabled()

    def block(page_of_datasets: dict) -> None:
        for dataset in page_of_datasets["results"]:
            dataset |= {"is_blocked": True, "block_reason": "Faces can be seen."}

    alter_answers(page, re.compile(r"/api/v1/datasets/\?"), block)
    page.reload()
    expect(page.locator("#blocked")).to_have_text(
        "An administrator has blocked this dataset. The reason: Faces can be seen."
    )
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.get_by_role("button", name="Start detection")).to_be_disabled()
    expect(page.locator("#quote")).to_have_text("No job can be started on a blocked dataset.")


def test_aborted_job_gives_back_what_was_not_done(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Long film")
    upload(page, drawn_video(tmp_path / "long.mp4", 100))
    expect(page.locator("#balance")).to_have_text("950")
    card = start_job(page)
    expect(page.locator("#balance")).to_have_text("850")
    card.get_by_role("button", name="Abort").click()
    page.get_by_role("button", name="Cancel").click()
    expect(card.locator(".state")).not_to_have_text("Aborted")
    card.get_by_role("button", name="Abort").click()
    page.get_by_role("button", name="Abort job", exact=True).click()
    expect(card.locator(".state")).to_have_text("Aborted")
    expect(card).to_contain_text(re.compile(r"Aborted by its owner\. Charged "))
    charged = float(re.search(r"Charged ([\d.]+) tokens", card.inner_text())[1])
    assert 0 <= charged < 100
    expect(page.locator("#balance")).to_have_text(f"{950 - charged:g}")
    expect(card.get_by_role("button", name="Abort")).to_be_hidden()
    page.locator("#open-tokens").click()
    expect(page.locator("#movements tr").first).to_have_attribute("data-kind", "release")
    assert movements(page)[0] == ("release", f"+{100 - charged:g}")
    assert movements(page)[-3:] == [("hold", "-100"), ("upload", "-50"), ("welcome", "+1,000")]


def test_refused_abort_is_told_on_the_card_of_its_job(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Long film")
    upload(page, drawn_video(tmp_path / "long.mp4", 100))
    card = start_job(page)
    unreachable = re.compile(r"/abort/$")
    page.route(unreachable, lambda route: route.abort())
    for told in ["The service cannot be reached. Please try again in a moment.", ""]:
        card.get_by_role("button", name="Abort").click()
        page.get_by_role("button", name="Abort job", exact=True).click()
        expect(card.locator(".alert")).to_have_text(told)
        expect(card.locator(".alert")).to_be_visible(visible=bool(told))
        page.unroute(unreachable)
    expect(card.locator(".state")).to_have_text("Aborted")


def test_aborted_job_is_tried_again_once_after_its_price_was_agreed_to(page, service, tmp_path):
    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Long film")
    upload(page, drawn_video(tmp_path / "long.mp4", 100))
    first = start_job(page)
    number = number_of(first)
    first = page.locator(f"article.job[data-job='{number}']")
    expect(first.locator("button", has_text="Try again")).to_be_hidden()
    first.get_by_role("button", name="Abort").click()
    page.get_by_role("button", name="Abort job", exact=True).click()
    again = first.get_by_role("button", name=f"Try again: job {number}", exact=True)
    again.click()
    dialog = page.get_by_role("alertdialog", name=f"Try job {number} again?")
    expect(dialog).to_contain_text("long.mp4 (100 frames). It costs at most 100 tokens, of your ")
    dialog.get_by_role("button", name="Cancel").click()
    expect(again).to_be_focused()
    expect(page.locator("article.job")).to_have_count(1)

    keys = answer_first_post(page, re.compile(r"/retry/$"), lose)
    again.dblclick()
    page.get_by_role("button", name="Start job").click()
    expect(first.get_by_role("alert")).to_have_text(
        "The service cannot be reached. Please try again in a moment. The job may have been "
        "started all the same; starting it again starts no second one."
    )
    again.click()
    expect(page.locator("#announcer")).to_have_text(re.compile(r"^Job \d+ "))
    second = page.locator("article.job").first
    expect(second).to_be_focused()
    expect(second.get_by_role("heading")).to_contain_text(f"job {number} again")
    expect(page.locator("article.job")).to_have_count(2)
    assert len(keys) == 2
    assert keys[0] == keys[1]
    expect(first.get_by_role("alert")).to_be_hidden()
    expect(again).to_be_hidden()  # the second job has all that the first left undone
    page.reload()
    expect(page.locator("article.job")).to_have_count(2)
    expect(again).to_be_hidden()


def test_results_are_narrowed_by_confidence_and_class_without_a_new_run(page, service, tmp_path):
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Slider")
    upload(page, drawn_image(tmp_path / "street.jpg"), drawn_video(tmp_path / "a.mp4", 3))
    card = start_job(page)
    picture = card.locator("figure", has_text="street.jpg")
    expect(picture.locator("img")).to_be_visible(timeout=JOB_TIMEOUT_MS)
    slider = card.get_by_role("slider", name="Confidence")
    row, boxes = card.locator("tbody tr").first, picture.locator("rect")

    def count_from(percent: int) -> int:
        slider.fill(str(percent))
        expect(card.locator(".slider b")).to_have_text(f"{percent}%")
        return sum(int(text.split()[0]) for text in row.locator(".chip").all_inner_texts())

    all_of_them = count_from(5)
    expect(boxes).to_have_count(all_of_them)
    count_from(25)
    expect(card.locator("figure svg rect")).to_have_count(0)  # as annotated
    # How sure the network is of which vehicle is its own affair.
    narrow = next(percent for percent in range(30, 100, 5) if count_from(percent) < all_of_them)
    some = count_from(narrow)
    assert 0 < some < all_of_them
    expect(boxes).to_have_count(some)

    cars = card.get_by_role("checkbox", name="car")
    cars.uncheck()
    expect(boxes).to_have_count(0)
    expect(row).to_contain_text("nothing")
    cars.check()
    expect(boxes).to_have_count(some)
    expect(page.locator("article.job")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("993.25")

    slider.fill("50")
    film = card.locator("figure", has_text="a.mp4")
    place = film.get_by_role("slider", name="Place in a.mp4")
    place.scroll_into_view_if_needed()
    expect(film.locator("rect").first).to_be_attached()
    drawn = film.locator("rect").count()
    expect(film.locator(".timeline output")).to_have_text(re.compile(rf"^0:00.0: {drawn} \w+"))
    place.focus()
    page.keyboard.press("End")
    expect(film.locator("video")).to_have_js_property("currentTime", 0.08)
    expect(film.locator(".timeline output")).to_have_text(re.compile(r"^0:00\.1: \d"))
    assert traffic.complaints == []


def test_results_of_a_job_whose_files_come_in_pages_show_all_of_them(page, service, tmp_path):
    asked: list[str] = []

    def tell_the_first_only(job: dict) -> None:
        del job["files"][1:]

    def give_one_at_a_time(route: Route) -> None:
        asked.append(urlsplit(route.request.url).query)
        route.continue_(url=route.request.url.replace("page_size=200", "page_size=1"))

    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/$"), tell_the_first_only)
    page.route(re.compile(r"/api/v1/jobs/\d+/files/"), give_one_at_a_time)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Album")
    for name in ("first.jpg", "second.jpg", "third.jpg"):
        upload(page, drawn_image(tmp_path / name, size_wh=(320, 180)))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(card.locator("tbody th")).to_have_text(["first.jpg", "second.jpg", "third.jpg"])
    expect(card.locator("figure")).to_have_count(3)
    assert asked == ["page_size=200", "page=2&page_size=1", "page=3&page_size=1"]


CAR = {"class": 0, "name": "car", "confidence": 0.9, "box": {"x1": 8, "y1": 8, "x2": 40, "y2": 30}}


def test_frames_stored_in_any_order_are_shown_in_order_of_time(page, service, tmp_path):
    def mix(route: Route) -> None:
        """The second half first, in two pages; in each frame as many cars as its number."""
        is_second = "page=2" in route.request.url
        answer = route.fetch(url=route.request.url.replace("&page=2", ""))
        frames = sorted(answer.json()["results"], key=lambda frame: frame["frame_index"])
        for frame in frames:
            frame["objects"] = [CAR] * frame["frame_index"]
        further = None if is_second else f"{route.request.url}&page=2"
        told = {"count": 4, "next": further, "results": frames[:2] if is_second else frames[2:]}
        route.fulfill(response=answer, json={**answer.json(), **told})

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Two workers")
    upload(page, drawn_video(tmp_path / "a.mp4", 4))
    page.route(re.compile(r"/api/v1/jobs/\d+/frame-results/"), mix)
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(card.locator("tbody tr")).to_contain_text("at most in one of 4 frames")
    expect(card.locator("tbody .chip")).to_have_text(["3 \N{MULTIPLICATION SIGN} car"])
    place, told = (
        card.get_by_role("slider", name="Place in a.mp4"),
        card.locator(".timeline output"),
    )
    place.scroll_into_view_if_needed()
    expect(card.locator("figure video")).to_have_js_property("readyState", 4)
    expect(place).to_have_attribute("max", "0.12")
    chart = card.locator(".timeline path").get_attribute("d")
    heights = [round(float(top)) for top in re.findall(r"L\d+ ([\d.]+)L", chart)]
    assert heights == [40, 27, 15, 2]  # from above
    counts = {"0.12": "0:00.1: 3 car", "0.08": "0:00.1: 2 car", "0.04": "0:00.0: 1 car"}
    for seconds, text in {**counts, "0": "0:00.0: nothing"}.items():
        place.fill(seconds)
        expect(told).to_have_text(text)


def test_boxes_of_an_aborted_job_can_be_downloaded(page, service, tmp_path):
    def abort_late(job: dict) -> None:
        if job["state"] == "Completed":  # as if only the annotated file was still to be made
            job["state"] = "Aborted"
            for file in job.get("files", ()):
                file["annotated_url"] = None

    def abort_each_late(listed: dict) -> None:
        for job in listed["results"]:
            abort_late(job)

    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/$"), abort_late)
    alter_answers(page, re.compile(r"/api/v1/jobs/\?"), abort_each_late)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Aborted")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(640, 360)))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Aborted", timeout=JOB_TIMEOUT_MS)
    expect(card.locator("tbody th")).to_have_text(["street.jpg"])
    card.get_by_role("combobox", name="Format of the boxes").select_option("CSV")
    with page.expect_download() as downloading:
        card.get_by_role("button", name="Download boxes").click()
    assert downloading.value.suggested_filename == f"job-{number_of(card)}.csv"
    assert "street.jpg" in downloading.value.path().read_text()
    expect(card.locator("figure")).to_have_count(0)
    expect(card.get_by_role("button", name="Download everything (zip)")).to_have_count(0)


def test_hidden_classes_stay_out_of_downloaded_boxes(page, service, tmp_path):
    asked: list[str] = []

    def give_a_car_and_a_bus(document: dict) -> None:
        document["results"][0]["objects"] = [CAR, {**CAR, "class": 2, "name": "bus"}]

    def listen(request) -> None:
        if "/exports/" in request.url:
            asked.append(urlsplit(request.url).query)

    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/frame-results/"), give_a_car_and_a_bus)
    page.on("request", listen)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Classes")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    card = start_job(page)
    download = card.locator(".export button")
    with page.expect_download(timeout=JOB_TIMEOUT_MS):
        download.click()
    card.get_by_role("checkbox", name="bus").uncheck()
    with page.expect_download():
        download.click()
    card.get_by_role("checkbox", name="car").uncheck()
    download.click()
    expect(download).to_have_text("Every class is hidden")
    assert asked == ["minimum_confidence=0.25", "minimum_confidence=0.25&class_name=car"]


def test_slider_begins_where_the_job_has_kept_boxes(page, service, tmp_path):
    floor = 0.55

    def give_floor(job: dict) -> None:
        job["options"]["confidence_floor"] = floor

    def give_one_box(document: dict) -> None:
        document["results"][0]["objects"] = [{**CAR, "confidence": floor}]

    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/$"), give_floor)
    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/frame-results/"), give_one_box)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Floors")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    slider = card.get_by_role("slider", name="Confidence")
    for floor, least, begins in ((0.55, "55", "55"), (0.97, "95", "95"), (0.001, "5", "25")):
        card.get_by_role("button", name="Hide results").click()
        card.get_by_role("button", name="Show results").click()
        expect(slider).to_have_attribute("min", least)
        expect(slider).to_have_value(begins)
        expect(card.locator(".slider b")).to_have_text(f"{begins}%")
        found = "1 \N{MULTIPLICATION SIGN} car" if floor > 0.25 else "nothing"
        expect(card.locator("tbody td").first).to_have_text(found)


def test_boxes_that_are_read_late_are_drawn_over_the_picture(page, service, tmp_path):
    held: list[Route] = []

    def give_floor(job: dict) -> None:
        job["options"]["confidence_floor"] = 0.55  # above what annotated files show

    def hold(route: Route) -> None:
        held.append(route)

    alter_answers(page, re.compile(r"/api/v1/jobs/\d+/$"), give_floor)
    page.route(re.compile(r"/api/v1/jobs/\d+/frame-results/"), hold)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Late")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    figure = start_job(page).locator("figure")
    expect(figure.locator("svg")).to_be_attached(timeout=JOB_TIMEOUT_MS)
    expect(figure.locator("rect")).to_have_count(0)
    (route,) = held
    answer = route.fetch()
    document = answer.json()
    document["results"][0]["objects"] = [CAR]
    route.fulfill(response=answer, json=document)
    expect(figure.locator("rect")).to_have_count(1)


def test_results_of_a_deleted_dataset_keep_the_boxes_of_the_download(page, service, tmp_path):
    kept = "The original cannot be shown here, so the boxes stay those of the download."
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Deleted since")
    upload(page, drawn_image(tmp_path / "street.jpg"), drawn_video(tmp_path / "a.mp4", 3))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete dataset").click()
    expect(page.locator("#no-datasets")).to_be_visible()
    watch_annotated_files(page)
    notes = card.locator("figure > p.aside")
    expect(notes).to_have_text([kept, kept])
    for note in notes.all():
        expect(note).to_be_hidden()

    slider = card.get_by_role("slider", name="Confidence")
    for percent in ("50", "60"):
        slider.fill(percent)
        for figure in card.locator("figure").all():
            figure.scroll_into_view_if_needed()
            expect(figure.locator("p.aside")).to_be_visible()
    watch_annotated_files(page)
    slider.fill("25")  # as annotated
    for note in notes.all():
        note.locator("..").scroll_into_view_if_needed()
        expect(note).to_be_hidden()
    expect(card).not_to_contain_text("You have no media file")
    refused = [urlsplit(url).path for url, _ in traffic.complaints]
    assert len(refused) == len(set(refused)) == 2  # each original was asked for once
    assert all(path.startswith("/api/v1/media-files/") for path in refused)


def test_picture_is_enlarged_and_left_by_keyboard(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Two pictures")
    upload(page, *(drawn_image(tmp_path / f"{seed}.jpg", seed) for seed in (7, 8)))
    card = start_job(page)
    enlarge = card.get_by_role("button", name="Enlarge 7.jpg")
    expect(enlarge).to_be_visible(timeout=JOB_TIMEOUT_MS)
    enlarge.focus()
    page.keyboard.press("Enter")
    viewer, picture = page.locator("#viewer"), page.locator("#viewer-picture img")
    expect(viewer.get_by_role("heading", name="7.jpg")).to_be_visible()
    expect(picture).to_have_js_property("naturalWidth", 1280)
    page.keyboard.press("ArrowRight")
    expect(viewer.get_by_role("heading", name="8.jpg")).to_be_visible()
    viewer.get_by_role("button", name="Full size").click()
    expect(picture).to_have_js_property("width", 1280)
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(enlarge).to_be_focused()


def test_viewer_never_shows_a_picture_under_the_name_of_another(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Two pictures")
    upload(page, *(drawn_image(tmp_path / f"{seed}.jpg", seed) for seed in (7, 8)))
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    card.get_by_role("button", name="Hide results").click()
    job = page.evaluate(
        """async id => {
            const { access } = JSON.parse(localStorage.getItem("odproject.session"));
            const headers = { Authorization: `Bearer ${access}` };
            return (await fetch(`/api/v1/jobs/${id}/`, { headers })).json();
        }""",
        number_of(card),
    )
    late = HeldRequests(page, f"**{job['files'][1]['annotated_url']}")
    card.get_by_role("button", name="Show results").click()
    viewer, picture = page.locator("#viewer"), page.locator("#viewer-picture")
    first = picture.get_by_alt_text("7.jpg with a box around each object found")
    card.get_by_role("button", name="Enlarge 7.jpg").click()
    expect(first).to_have_js_property("naturalWidth", 1280)
    viewer.get_by_role("button", name="Next").click()
    expect(viewer.get_by_role("heading")).to_have_text("8.jpg")
    expect(picture).to_have_text("Loading…")
    expect(picture.locator("img")).to_have_count(0)
    viewer.get_by_role("button", name="Next").click()
    expect(first).to_be_visible()
    late.take().abort()
    expect(card.locator("figure").nth(1)).to_contain_text("The service cannot be reached.")
    expect(first).to_be_visible()
    expect(picture).to_have_text("")

    viewer.get_by_role("button", name="Next").click()
    expect(picture).to_have_text("Loading…")
    picture_of_8 = late.take()
    page.keyboard.press("Escape")
    with page.expect_event("requestfinished", lambda one: one == picture_of_8.request):
        picture_of_8.continue_()
    let_page_read(page)
    expect(viewer).to_be_hidden()
    expect(picture.locator("*")).to_have_count(0)


def test_detection_that_costs_nothing_can_be_started(page, service, tmp_path):
    def make_free(document: dict) -> None:
        for dataset in document.get("results", []):
            dataset["inference_cost_tokens"] = 0
        if "quoted_tokens" in document:
            document["quoted_tokens"] = 0

    sign_up(page, service.base_url, unique_email())
    alter_answers(page, re.compile(r"/api/v1/(datasets/\?|quotes/$)"), make_free)
    create_dataset(page, "Free of charge")
    expect(page.locator("#quote")).to_contain_text("Add pictures or videos first")
    expect(page.get_by_role("button", name="Start detection")).to_be_disabled()
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    expect(page.locator("#quote")).to_contain_text("Price: 0 tokens for 1 picture")
    expect(page.get_by_role("button", name="Start detection")).to_be_enabled()


def test_start_waits_for_the_price_of_all_that_was_uploaded_and_then_stays_ready(
    page, service, tmp_path
):
    """Not ready, then not, then ready again would lose a press that comes in between."""
    a, b = (drawn_image(tmp_path / name, size_wh=(320, 180)) for name in ("a.jpg", "b.jpg"))
    start = page.get_by_role("button", name="Start detection")
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Twice as much")
    upload(page, a)
    expect(start).to_be_enabled()
    late = LateAnswer(page, re.compile(r"/api/v1/datasets/\?"))
    quotes: list[str] = []
    page.on("request", lambda one: quotes.append(one.url) if "/quotes/" in one.url else None)
    upload(page, b)
    late.wait_until_held()
    let_page_read(page)
    expect(start).to_be_disabled()
    assert quotes == []
    late.arrive()
    expect(start).to_be_enabled()
    expect(page.locator("#quote")).to_contain_text("Price: 3 tokens for 2 pictures")
    assert len(quotes) == 1


def test_price_is_known_after_an_upload_although_the_list_of_datasets_is_not(
    page, service, tmp_path
):
    a, b = (drawn_image(tmp_path / name, size_wh=(320, 180)) for name in ("a.jpg", "b.jpg"))
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "No list")
    upload(page, a)
    expect(page.locator("#quote")).to_contain_text("Price: 1.5 tokens for 1 picture")
    page.route(re.compile(r"/api/v1/datasets/\?"), lambda one: one.abort("connectionreset"))
    upload(page, b)
    expect(page.locator("#datasets-alert")).to_be_visible()
    expect(page.locator("#quote")).to_contain_text("Price: 3 tokens for 2 pictures")
    expect(page.get_by_role("button", name="Start detection")).to_be_enabled()


def test_options_change_the_price_and_what_is_looked_at(page, service, tmp_path):
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Every fourth")
    upload(page, drawn_video(tmp_path / "a.mp4", 10))
    expect(page.locator("#quote")).to_contain_text("Price: 10 tokens for 10 frames")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Every n-th frame").fill("4")
    page.get_by_label("Track objects").check()
    expect(page.locator("#quote")).to_contain_text("Price: 3 tokens for 3 frames")
    expect(page.locator("#options-chosen")).to_have_text("every 4th frame · tracked")
    page.get_by_label("Every n-th frame").fill("0")
    page.get_by_label("Track objects").uncheck()
    expect(page.locator("#quote")).to_contain_text("frame_stride must be a whole number")
    expect(page.get_by_role("button", name="Start detection")).to_be_disabled()
    page.get_by_label("Every n-th frame").fill("5")
    page.get_by_label("Track objects").check()
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(card.locator("h3")).to_contain_text("every 5th frame · tracked")
    expect(card.locator("tbody tr")).to_contain_text("at most in one of 2 frames")
    expect(page.locator("#balance")).to_have_text("993")
    refused = {urlsplit(url).path for url, _ in traffic.complaints}
    assert refused == {"/api/v1/quotes/"}


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lambda route: route.abort(), "The service cannot be reached."),
        (lambda route: route.fulfill(status=504), "The service answered with status 504."),
        (lambda route: route.fulfill(status=202, body='{"id": 7, '), "The connection broke off."),
    ],
    ids=["connection broke", "proxy gave up", "connection broke within the answer"],
)
def test_job_whose_answer_got_lost_is_started_once(page, service, tmp_path, lose, told):
    def lose_first_answer(route: Route) -> None:
        route.fetch()
        lose(route)

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Tunnel")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    keys = answer_first_post(page, re.compile(r"/api/v1/jobs/$"), lose_first_answer)
    page.get_by_role("button", name="Start detection").click()
    expect(page.locator("#start-alert")).to_contain_text(told)
    expect(page.locator("#start-alert")).to_contain_text(
        "The job may have been started all the same; starting it again starts no second one."
    )
    page.get_by_role("button", name="Start detection").click()
    expect(page.locator("article.job .state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    assert keys[0] == keys[1]
    expect(page.locator("article.job")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("997.75")


SUBMIT_WITH_THE_NEXT_BALANCE = """() => {
    const again = new MutationObserver(() => {
        if (!document.querySelector("article.job")) return;
        again.disconnect();
        document.getElementById("start").requestSubmit();
    });
    again.observe(document.getElementById("balance"), { childList: true });
}"""


def test_second_click_of_a_double_click_starts_no_second_job(page, service, tmp_path):
    """It comes when the job is there and the new balance known, so nothing else would stop it."""
    posted: list[str] = []
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Twice")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    page.on("request", lambda one: posted.append(one.url) if one.method == "POST" else None)
    page.evaluate(SUBMIT_WITH_THE_NEXT_BALANCE)
    card = start_job(page)
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    expect(page.get_by_role("button", name="Start detection")).to_be_enabled()
    assert [url for url in posted if url.endswith("/api/v1/jobs/")] == [
        f"{service.base_url}/api/v1/jobs/"
    ]
    expect(page.locator("article.job")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("997.75")


IN_DOUBT = "Nobody knows yet whether it was accepted: "
TRY_AGAIN = " Try again; it is charged once at most."


def test_upload_that_a_proxy_gave_up_waiting_for_is_charged_once(page, service, tmp_path):
    keys: list[str] = []

    def answer_late(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            _take(page, route, picture)
            route.fulfill(status=504, body="Gateway Time-out")
        elif len(keys) == 2:
            in_use = {"code": "idempotency_key_in_use", "detail": "It is still at work."}
            route.fulfill(status=409, json=in_use, content_type="application/problem+json")
        elif len(keys) == 3:
            route.fulfill(status=429, json={"code": "too_many_requests", "detail": "Too many."})
        else:
            route.continue_()

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Slow proxy")
    picture = drawn_image(tmp_path / "street.jpg", size_wh=(320, 180))
    page.route(re.compile(r"/api/v1/datasets/\d+/uploads/$"), answer_late)
    report = upload(page, picture)
    title, line = report.locator("h4"), report.locator("li")
    expect(title).to_have_text("1 file perhaps accepted and charged")
    expect(line.locator("span")).to_have_text(
        f"{IN_DOUBT}The service answered with status 504.{TRY_AGAIN}"
    )
    page.get_by_role("button", name="Try again").click()
    expect(line.locator("span")).to_have_text(f"{IN_DOUBT}It is still at work.{TRY_AGAIN}")
    page.get_by_role("button", name="Try again").click()
    expect(line.locator("span")).to_have_text(f"{IN_DOUBT}Too many.{TRY_AGAIN}")
    expect(title).to_have_text("1 file perhaps accepted and charged")
    upload(page, picture)  # chosen anew, which is what many would do
    expect(title).to_have_text("1 file accepted for 0.75 tokens")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    assert len(keys) == 4
    assert len(set(keys)) == 1
    expect(page.locator("#media-files li")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("999.25")

    upload(page, picture)  # what is known to be taken may be taken a second time
    expect(page.locator("#balance")).to_have_text("998.5")
    assert len(set(keys)) == 2


def test_file_chosen_again_before_its_upload_is_in_doubt_is_charged_once(page, service, tmp_path):
    uploads = HeldUploads(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Impatient")
    picture = drawn_image(tmp_path / "street.jpg", size_wh=(320, 180))
    page.get_by_label("Choose files").set_input_files(picture)
    held = uploads.first
    page.get_by_label("Choose files").set_input_files(picture)
    expect(page.locator("#announcer")).to_have_text("Waiting to be uploaded: 1 file.")
    _take(page, held, picture)
    held.fulfill(status=504, body="Gateway Time-out")
    expect(page.locator("#report h4")).to_have_text("1 file accepted for 0.75 tokens")
    expect(page.locator("#report li")).to_have_text(["street.jpg" + "Image, 0.75 tokens"])
    expect(page.locator("#media-files li")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("999.25")
    assert len(uploads.keys) == 2
    assert len(set(uploads.keys)) == 1


def test_upload_that_a_reload_cut_off_is_charged_once(page, service, tmp_path):
    keys: list[str] = []

    def answer_first_nothing(route: Route) -> None:
        if route.request.method != "POST" or keys:
            route.continue_()
            return
        _take(page, route, picture)
        keys.append(route.request.headers["idempotency-key"])

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Impatient")
    picture = drawn_image(tmp_path / "street.jpg", size_wh=(320, 180))
    address = re.compile(r"/api/v1/datasets/\d+/uploads/$")
    page.route(address, answer_first_nothing)
    page.set_input_files("#files", picture)
    expect(page.locator("#upload-label")).to_contain_text("street.jpg")
    while not keys:
        page.wait_for_timeout(50)
    page.on("dialog", lambda dialog: dialog.accept())  # whether to leave
    page.reload()
    expect(page.locator("#balance")).to_have_text("999.25")
    with page.expect_request(address) as again:
        report = upload(page, picture)
    expect(report.locator("h4")).to_have_text("1 file accepted for 0.75 tokens")
    assert again.value.headers["idempotency-key"] == keys[0]
    expect(page.locator("#media-files li")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("999.25")

    upload(page, picture)  # what is known to be taken may be taken a second time
    expect(page.locator("#balance")).to_have_text("998.5")


def _take(page: Page, route: Route, picture: Path) -> None:
    """Have the service take an upload: not by route.fetch(), which leaves the file out."""
    sent = {"name": picture.name, "mimeType": "image/jpeg", "buffer": picture.read_bytes()}
    names = ("authorization", "idempotency-key")
    headers = {name: route.request.headers[name] for name in names}
    taken = page.request.post(route.request.url, headers=headers, multipart={"file": sent})
    assert taken.status == 201


def _two_pictures(folder: Path) -> list[Path]:
    names = (folder / "a.jpg", folder / "b.jpg")
    return [drawn_image(name, seed, size_wh=(320, 180)) for seed, name in enumerate(names)]


def test_upload_whose_connection_breaks_goes_on_when_it_is_back(page, service, tmp_path):
    def lose_first_answer(route: Route) -> None:
        _take(page, route, pictures[0])
        route.abort("connectionreset")

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Wavering")
    pictures = _two_pictures(tmp_path)
    looks = HeldRequests(page, "**/livez")
    keys = answer_first_post(page, UPLOADS, lose_first_answer)
    page.get_by_label("Choose files").set_input_files(pictures)
    expect(page.locator("#upload-label")).to_have_text("a.jpg waits for the connection (1 of 2)")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    look = looks.take()
    assert len(keys) == 1
    look.continue_()
    expect(page.locator("#report h4")).to_have_text("2 files accepted for 1.5 tokens")
    expect(page.locator("#balance")).to_have_text("998.5")
    expect(page.locator("#media-files li")).to_have_count(2)
    assert len(keys) == 3
    assert keys[0] == keys[1] != keys[2]


def test_large_upload_goes_on_where_the_connection_or_the_page_broke_off(page, service, tmp_path):
    keys: list[str] = []
    offsets: list[int] = []

    def break_second_and_hold_some(route: Route) -> None:
        if route.request.method != "PATCH":
            route.continue_()
            return
        offsets.append(int(route.request.headers["upload-offset"]))
        if len(offsets) == 2:
            route.abort("connectionreset")
        elif len(offsets) not in (4, 7):
            route.continue_()

    def note(request) -> None:
        if request.method == "POST" and request.url.endswith("/resumable-uploads/"):
            keys.append(request.headers["idempotency-key"])

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Wavering")
    picture = large_image(tmp_path / "large.bmp")
    page.on("request", note)
    page.route(re.compile(r"/resumable-uploads/\d+/$"), break_second_and_hold_some)
    page.set_input_files("#files", picture)
    while len(offsets) < 4:
        page.wait_for_timeout(50)
    expect(page.locator("#balance")).to_have_text("1,000")
    page.on("dialog", lambda dialog: dialog.accept())  # whether to leave
    page.reload()
    page.get_by_role("heading", name="Wavering", exact=True).wait_for()
    report = upload(page, picture)
    expect(report.locator("h4")).to_have_text("1 file accepted for 0.75 tokens")
    expect(page.locator("#balance")).to_have_text("999.25")
    expect(page.locator("#media-files li")).to_have_count(1)
    piece = 8 * 2**20
    assert offsets == [0, piece, piece, 2 * piece, 2 * piece]
    assert len(keys) == 3
    assert len(set(keys)) == 1

    # What is known to be taken may be taken a second time; this time it is given up.
    page.set_input_files("#files", picture)
    while len(offsets) < 7:
        page.wait_for_timeout(50)
    with page.expect_response(lambda one: one.request.method == "DELETE") as given_up:
        page.get_by_role("button", name="Cancel").click()
    assert given_up.value.status == 204
    expect(page.locator("#report li.refused")).to_contain_text("large.bmpRefused: Cancelled.")
    assert offsets[5:] == [0, piece]
    assert len(set(keys)) == 2
    expect(page.locator("#balance")).to_have_text("999.25")


def test_wait_for_the_connection_can_be_cancelled(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Away")
    page.route("**/livez", lambda route: route.abort("internetdisconnected"))
    page.route(UPLOADS, lambda route: route.abort("internetdisconnected"))
    page.get_by_label("Choose files").set_input_files(_two_pictures(tmp_path))
    expect(page.locator("#upload-label")).to_have_text("a.jpg waits for the connection (1 of 2)")
    page.get_by_role("button", name="Cancel").click()
    lines = page.locator("#report li span")
    expect(lines).to_have_text([f"{IN_DOUBT}The connection broke off.{TRY_AGAIN}"])
    expect(page.locator("#uploading")).to_be_hidden()
    page.unroute(UPLOADS)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#report h4")).to_have_text("1 file accepted for 0.75 tokens")
    expect(page.locator("#balance")).to_have_text("999.25")


def test_upload_that_breaks_again_and_again_is_left_to_its_user(page, service, tmp_path):
    sent: list[str] = []

    def break_off(route: Route) -> None:
        sent.append(route.request.headers["idempotency-key"])
        route.abort("connectionreset")

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Broken")
    page.route(
        UPLOADS, lambda one: break_off(one) if one.request.method == "POST" else one.continue_()
    )
    page.get_by_label("Choose files").set_input_files(drawn_image(tmp_path / "a.jpg"))
    lines = page.locator("#report li span")
    expect(lines).to_have_text([f"{IN_DOUBT}The connection broke off.{TRY_AGAIN}"])
    assert len(sent) == 3
    assert len(set(sent)) == 1


def test_upload_refused_for_want_of_room_is_free_and_may_be_tried_again(page, service, tmp_path):
    def refuse(route: Route) -> None:
        if route.request.method == "POST":
            full = {"code": "storage_full", "detail": "There is no room now."}
            route.fulfill(status=507, json=full, content_type="application/problem+json")
        else:
            route.continue_()

    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "No room")
    uploads = re.compile(r"/api/v1/datasets/\d+/uploads/$")
    page.route(uploads, refuse)
    report = upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    expect(report.locator("h4")).to_have_text("1 file refused, free of charge")
    expect(report.locator("li span")).to_have_text("Refused: There is no room now.")
    page.unroute(uploads)
    page.get_by_role("button", name="Try again").click()
    expect(report.locator("h4")).to_have_text("1 file accepted for 0.75 tokens")
    expect(page.locator("#balance")).to_have_text("999.25")


def test_files_of_a_dataset_are_shown_as_thumbnails(page, service, tmp_path):
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Thumbnails")
    upload(page, drawn_image(tmp_path / "street.jpg"), drawn_video(tmp_path / "a.mp4", 3))
    tiles = page.locator("#media-files li")
    expect(tiles).to_have_count(2)
    expect(tiles.nth(0)).to_contain_text("a.mp4" + "640 \N{MULTIPLICATION SIGN} 360, 3 frames")
    expect(tiles.nth(1)).to_contain_text("street.jpg" + "1280 \N{MULTIPLICATION SIGN} 720")
    for tile in tiles.all():
        expect(tile.locator("img")).to_have_attribute("src", re.compile("^blob:"))
        expect(tile.locator("img")).not_to_have_js_property("naturalWidth", 0)
    create_dataset(page, "Another one")
    expect(page.locator("#media")).to_be_hidden()
    expect(tiles).to_have_count(0)
    assert traffic.complaints == []


def test_file_is_deleted_and_no_longer_counted(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Tidy")
    upload(page, *_two_pictures(tmp_path))
    tiles = page.locator("#media-files li")
    expect(tiles).to_have_count(2)
    page.get_by_role("button", name="Delete a.jpg").click()
    page.get_by_role("button", name="Cancel").click()
    expect(tiles).to_have_count(2)
    page.get_by_role("button", name="Delete a.jpg").click()
    page.get_by_role("button", name="Delete file").click()
    expect(tiles).to_have_count(1)
    expect(tiles).to_contain_text("b.jpg")
    expect(page.locator("#dataset-about")).to_have_text("1 picture")
    expect(page.locator("#balance")).to_have_text("998.5")  # nothing is paid back


def shorten_pages(page: Page) -> None:
    """Have a page of the list of jobs hold four instead of 24, which take long to make."""

    def shorten(route: Route) -> None:
        route.fallback(url=route.request.url.replace("page_size=24", "page_size=4"))

    page.route(re.compile(r"/api/v1/jobs/\?page_size=24"), shorten)


def abort_jobs(page: Page, count: int) -> None:
    """Start and abort so many jobs on the newest dataset, without the page."""
    page.evaluate(
        """async count => {
            const { access } = JSON.parse(localStorage.getItem("odproject.session"));
            const type = { "Content-Type": "application/json" };
            const headers = { Authorization: `Bearer ${access}`, ...type };
            const ask = async (path, body) => {
                const settings = body ? { method: "POST", headers, body } : { headers };
                return (await fetch(`/api/v1/${path}`, settings)).json();
            };
            const dataset_id = (await ask("datasets/")).results[0].id;
            const body = JSON.stringify({ dataset_id, model_version: "YOLO8s_FSR" });
            for (let made = 0; made < count; made++) {
                const { id } = await ask("jobs/", body);
                await ask(`jobs/${id}/abort/`, "{}");
            }
        }""",
        count,
    )


def test_older_jobs_are_shown_on_demand(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Many jobs")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    abort_jobs(page, 6)
    shorten_pages(page)
    page.reload()
    cards = page.locator("article.job")
    expect(cards).to_have_count(4)
    older = re.compile(r"/api/v1/jobs/\?.*page=2")
    page.route(older, lambda route: route.abort())
    page.get_by_role("button", name="Show older jobs").click()
    expect(page.locator("#jobs-alert")).to_contain_text("The service cannot be reached.")
    page.unroute(older)
    page.get_by_role("button", name="Show older jobs").click()
    expect(page.locator("#jobs-alert")).to_be_hidden()
    expect(cards).to_have_count(6)
    expect(page.locator("#more-jobs")).to_be_hidden()
    ids = [number_of(card) for card in cards.all()]
    assert ids == sorted(ids, reverse=True)


def test_older_jobs_are_offered_also_if_news_of_one_came_before_the_list(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Many jobs")
    upload(page, drawn_image(tmp_path / "street.jpg", size_wh=(320, 180)))
    abort_jobs(page, 6)
    lists = HeldRequests(page, re.compile(r"/api/v1/jobs/\?"))
    shorten_pages(page)
    page.reload()
    expect(page.locator("#connection")).to_have_text("Live")
    abort_jobs(page, 1)
    cards = page.locator("article.job")
    expect(cards).to_have_count(1)
    expect(cards.locator(".state")).to_have_text("Aborted")
    lists.let_go()
    expect(cards).to_have_count(4)
    page.get_by_role("button", name="Show older jobs").click()
    expect(cards).to_have_count(7)
    expect(page.locator("#more-jobs")).to_be_hidden()
    ids = [number_of(card) for card in cards.all()]
    assert ids == sorted(ids, reverse=True)


def test_statement_of_a_month_is_read_and_downloaded_from_the_keyboard(page, service):
    sums = {"welcome_tokens": 0, "top_up_tokens": 500, "upload_tokens": 12.5, "capture_tokens": 30}
    older = {
        "month": "2024-02",
        "is_final": True,
        "opening": {"available_tokens": 1000, "held_tokens": 0},
        "moved": sums,
        "closing": {"available_tokens": 1450.5, "held_tokens": 7},
    }
    sign_up(page, service.base_url, unique_email())
    alter_answers(
        page, re.compile("/api/v1/statements/[?]"), lambda it: it["results"].append(older)
    )
    traffic = Traffic(page)
    page.locator("#open-tokens").focus()
    page.keyboard.press("Enter")
    month, shown = page.get_by_label("Statement of"), page.locator("#statement-sums")
    expect(shown).to_contain_text(
        "Came in1,000Spent0 on uploads, 0 on jobsSo far1,000 to spend, 0 held"
    )
    month.focus()
    page.keyboard.press("ArrowDown")
    expect(month).to_have_value("2024-02")
    expect(month.locator("option:checked")).to_have_text("February 2024")
    expect(shown).to_have_text(
        "It began with1,000 to spend, 0 heldCame in500"
        "Spent12.5 on uploads, 30 on jobsIt ended with1,450.5 to spend, 7 held"
    )
    page.keyboard.press("ArrowUp")
    name = f"statement-{month.input_value()}.csv"
    page.keyboard.press("Tab")
    with page.expect_download() as downloading:
        page.keyboard.press("Enter")
    assert downloading.value.suggested_filename == name
    _, _, gift = downloading.value.path().read_text().splitlines()
    assert gift.split(",")[1:6] == ["welcome", "1000", "0", "1000", "0"]
    month.select_option("2024-02")  # which the service has no statement of
    page.get_by_role("button", name="Download CSV").click()
    expect(page.locator("#statement-alert")).to_have_text("There is no statement of 2024-02.")
    assert [told for _, told in traffic.complaints if "404" not in told] == []


def test_second_person_sees_nothing_of_the_first(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Private street")
    upload(page, drawn_image(tmp_path / "private.jpg", size_wh=(640, 360)))
    expect(start_job(page).locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    log_out(page)
    sign_up(page, service.base_url, unique_email())
    expect(page.locator("#balance")).to_have_text("1,000")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#no-datasets")).to_be_visible()
    expect(page.locator("#no-jobs")).to_be_visible()
    page.locator("#open-tokens").click()
    expect(page.locator("#movements tr")).to_have_count(1)
    assert movements(page) == [("welcome", "+1,000")]
    content = page.content()
    assert not [word for word in ("Private street", "private.jpg") if word in content]


def test_picture_that_the_browser_has_kept_is_for_nobody_else(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Private street")
    with page.expect_response("**/thumbnail/") as shown:
        upload(page, drawn_image(tmp_path / "private.jpg", size_wh=(640, 360)))
    address = shown.value.url
    ask = """async address => {
        const { access } = JSON.parse(localStorage.getItem("odproject.session"));
        const answer = await fetch(address, { headers: { Authorization: `Bearer ${access}` } });
        return answer.status;
    }"""
    assert page.evaluate(ask, address) == 200
    log_out(page)
    sign_up(page, service.base_url, unique_email())
    assert page.evaluate(ask, address) == 404
    assert page.evaluate("async address => (await fetch(address)).status", address) == 401


def test_log_out_ends_the_session_of_every_tab_and_of_the_service(page, service):
    sign_up_by_form(page, service.base_url, unique_email())
    other = page.context.new_page()
    other.goto(service.base_url)
    expect(other.locator("#connection")).to_have_text("Live")
    old = session_of(page)

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in", exact=True)).to_be_visible()
    expect(other.get_by_role("alert")).to_have_text("You have logged out in another tab.")
    for tab in (page, other):
        expect(tab.locator("#workplace")).to_be_hidden()
        assert tab.evaluate("localStorage.length + sessionStorage.length") == 0
    assert page.context.cookies() == []

    bearer = {"Authorization": f"Bearer {old['access']}"}
    assert page.request.get(f"{service.base_url}/api/v1/me/", headers=bearer).status == 401
    keys = {"refresh": old["refresh"]}
    refused = page.request.post(f"{service.base_url}/api/v1/tokens/refresh/", data=keys)
    assert refused.status == 401


def test_tab_of_another_person_is_not_used_for_this_one(page, service):
    sign_up(page, service.base_url, unique_email())
    create_dataset(page, "Of the first")
    other = page.context.new_page()
    other.goto(service.base_url)
    expect(other.locator("#datasets")).to_contain_text("Of the first")
    log_out(page)
    second = unique_email()
    sign_up(page, service.base_url, second)
    expect(other.locator("#email")).to_have_text(second)
    expect(other.locator("#no-datasets")).to_be_visible()
    assert "Of the first" not in other.content()


def test_ended_session_leads_back_to_the_log_in(page, service):
    sign_up_by_form(page, service.base_url, unique_email())
    page.evaluate(
        """() => {
            const session = JSON.parse(localStorage.getItem("odproject.session"));
            const ended = { ...session, access: "a.b.c", refresh: "a.b.c" };
            localStorage.setItem("odproject.session", JSON.stringify(ended));
        }"""
    )
    # Not page.reload(), which fails when the page that it loads begins anew by itself.
    page.evaluate("() => { setTimeout(() => location.reload()) }")
    # Only the page that has begun anew shows this.
    expect(page.get_by_role("heading", name="Log in", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text("Your session has ended. Please log in again.")
    assert page.evaluate("localStorage.length") == 0


def test_refused_access_token_is_renewed_once_for_all_requests(page, service):
    traffic = Traffic(page)
    sign_up(page, service.base_url, unique_email())
    expect(page.locator("#connection")).to_have_text("Live")
    page.evaluate(
        """() => {
            const session = JSON.parse(localStorage.getItem("odproject.session"));
            const refused = { ...session, access: "a.b.c" };
            localStorage.setItem("odproject.session", JSON.stringify(refused));
        }"""
    )
    page.reload()  # a page that begins asks for many things at once
    expect(page.locator("#balance")).to_have_text("1,000")
    expect(page.locator("#connection")).to_have_text("Live")
    refreshes = [url for url in traffic.urls if url.endswith("/tokens/refresh/")]
    assert len(refreshes) == 1
    assert {"401" in text for _, text in traffic.complaints} == {True}
    create_dataset(page, "After the renewal")


def test_two_tabs_without_locks_survive_an_exchange_in_the_same_moment(page, service):
    # A browser offers locks only to pages of a secure address.
    page.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
    sign_up(page, service.base_url, unique_email())
    tabs = [page, page.context.new_page()]
    tabs[1].goto(service.base_url)
    exchanges: list[Route] = []

    def hold_until_both_have_come(route: Route) -> None:
        exchanges.append(route)
        if len(exchanges) == 2:
            for one in exchanges:
                one.continue_()

    for tab in tabs:
        expect(tab.locator("#connection")).to_have_text("Live")
        tab.evaluate("window.neverReloaded = true")
    page.context.route("**/api/v1/tokens/refresh/", hold_until_both_have_come)
    page.evaluate(
        """() => {
            const session = JSON.parse(localStorage.getItem("odproject.session"));
            const old = { ...session, renewAt: 0 };
            localStorage.setItem("odproject.session", JSON.stringify(old));
        }"""
    )
    for tab in tabs:
        tab.locator("#open-tokens").click()
    for tab in tabs:
        expect(tab.locator("#movements tr")).to_have_count(1)
        assert tab.evaluate("window.neverReloaded") is True
    assert len(exchanges) == 2
    assert sorted(route.request.response().status for route in exchanges) == [201, 401]


def _shorten_access_token(page: Page, service: Service, lives_seconds: int) -> None:
    """Put a token of the same session into the page's storage that ends soon."""
    secret = (service.data_dir / "secret_key").read_text().strip()
    claims = jwt.decode(session_of(page)["access"], secret, algorithms=["HS256"])
    claims |= {"iat": int(time.time()), "exp": int(time.time()) + lives_seconds}
    page.evaluate(
        """([access, livesMs]) => {
            const session = JSON.parse(localStorage.getItem("odproject.session"));
            const short = { ...session, access, renewAt: Date.now() + 0.8 * livesMs };
            localStorage.setItem("odproject.session", JSON.stringify(short));
        }""",
        [jwt.encode(claims, secret, algorithm="HS256"), 1000 * lives_seconds],
    )


def test_expired_access_token_is_renewed_silently_in_two_tabs(page, service):
    sign_up(page, service.base_url, unique_email())
    tabs = [page, page.context.new_page()]
    traffic = [Traffic(tab) for tab in tabs]
    first = session_of(page)["refresh"]
    _shorten_access_token(page, service, lives_seconds=15)
    for tab in tabs:
        tab.goto(service.base_url)
        tab.evaluate("window.neverReloaded = true")
    for heard in traffic:  # a socket ends with its access token, and the next one opens
        wait_for_greetings(page, heard, 2)
    assert session_of(page)["refresh"] != first
    exchanges = [url for heard in traffic for url in heard.urls if "/tokens/refresh/" in url]
    assert len(exchanges) == 1
    create_dataset(tabs[1], "Still here")
    for tab, seen in zip(tabs, traffic, strict=True):
        assert tab.evaluate("window.neverReloaded") is True
        assert seen.complaints == []


# -- API keys and a low balance


def test_key_is_made_shown_once_used_and_revoked(page, service):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_up(page, service.base_url, unique_email())
    page.get_by_role("button", name="API keys").click()
    page.get_by_label("What is it for?").fill("<i>nightly</i>")
    page.get_by_label("For reading only").check()
    page.get_by_role("button", name="Make key").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    key = page.evaluate("navigator.clipboard.readText()")
    assert page.locator("#made-key-text").input_value() == key

    def status() -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return page.request.get(f"{service.base_url}/api/v1/me/", headers=headers).status

    assert status() == 200
    page.get_by_role("button", name="Close").click()
    assert page.evaluate("document.getElementById('made-key-text').value") == ""
    page.get_by_role("button", name="API keys").click()
    row = page.get_by_role("row").filter(has_text="<i>nightly</i>")
    expect(row).to_contain_text(f"{key.rpartition('_')[0]}… reading only")
    expect(page.locator("#made-key")).to_be_hidden()
    assert key.rpartition("_")[2] not in page.content()
    page.get_by_label("What is it for?").fill("<i>nightly</i>")
    page.get_by_role("button", name="Make key").click()
    expect(page.locator("#make-key-alert")).to_contain_text("named <i>nightly</i> already")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Cancel").click()
    assert status() == 200
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(row).to_have_count(0)
    assert status() == 401


def test_low_balance_is_shown_to_who_wants_to_know(page, service, tmp_path):
    sign_up(page, service.base_url, unique_email())
    notice = page.locator("#low-balance")
    page.locator("#open-tokens").click()
    page.get_by_label("Tell me when I have fewer tokens").fill("much")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#threshold-alert")).to_contain_text("valid number")
    page.get_by_label("Tell me when I have fewer tokens").fill("1000")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#threshold-alert")).to_be_hidden()
    page.get_by_role("button", name="Close").click()
    expect(notice).to_be_hidden()
    create_dataset(page, "street")
    upload(page, drawn_image(tmp_path / "a.jpg"))
    expect(notice).to_have_text("Your balance of 999.25 tokens is below 1,000.")
    page.reload()
    expect(notice).to_have_text("Your balance of 999.25 tokens is below 1,000.")
    page.locator("#open-tokens").click()
    expect(page.get_by_label("Tell me when I have fewer tokens")).to_have_value("1000")
    page.get_by_label("Tell me when I have fewer tokens").fill("")
    page.get_by_role("button", name="Save").click()
    expect(notice).to_be_hidden()


def test_keyboard_and_a_narrow_phone_are_enough(browser, service, tmp_path: Path):
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = context.new_page()
    email = unique_email()
    sign_up(page, service.base_url, email)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for keys in (email, PASSWORD):
        page.keyboard.press("Tab")
        page.keyboard.type(keys)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Datasets", exact=True)).to_be_visible()
    page.locator("#open-tokens").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#movements tr")).to_have_count(1)
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#tokens").evaluate("one => one.scrollWidth <= one.clientWidth")
    page.keyboard.press("Enter")
    expect(page.locator("#tokens")).to_be_hidden()
    page.get_by_label("Name (3 to 40 characters)").focus()
    page.keyboard.type("A dataset whose name has forty characters")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Choose files")).to_be_focused()
    upload(page, drawn_image(tmp_path / f"{'long' * 30}.jpg", size_wh=(640, 360)))
    page.get_by_role("button", name="Rename or tag").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" or not")  # the field takes forty characters and no more
    page.keyboard.press("Tab")
    page.keyboard.type("t" * 100)
    page.keyboard.press("Enter")
    expect(page.locator("#dataset-about")).to_contain_text("#ttt")
    expect(page.get_by_role("button", name="Start detection")).to_be_enabled()
    page.get_by_role("button", name="Start detection").focus()
    page.keyboard.press("Enter")
    card = page.locator("article.job")
    expect(card.locator(".state")).to_have_text("Completed", timeout=JOB_TIMEOUT_MS)
    card.locator("figure").scroll_into_view_if_needed()  # pictures load where they can be seen
    expect(card.locator("figure img")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    context.close()


@pytest.mark.parametrize(
    ("scheme", "background"), [("light", "rgb(250, 250, 250)"), ("dark", "rgb(28, 32, 34)")]
)
def test_api_documentation_is_as_dark_as_the_readers_system(service, page, scheme, background):
    traffic = Traffic(page)
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{service.base_url}/api/docs/")
    expect(page.locator(".opblock").first).to_be_visible()
    seen = "getComputedStyle(document.querySelector('.swagger-ui')).backgroundColor"
    behind = "getComputedStyle(document.body).backgroundColor"
    under = "getComputedStyle(document.documentElement).backgroundColor"
    assert background in {page.evaluate(one) for one in (seen, behind, under)}
    assert traffic.complaints == []

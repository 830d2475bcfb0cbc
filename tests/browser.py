"""A real Chromium on the page for people, and what is done there again and again."""

import functools
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import (
    APIResponse,
    Browser,
    Locator,
    Page,
    Route,
    expect,
    sync_playwright,
)

from inference.pipeline.encode import VideoWriter
from inference.scenes import draw_scene, draw_video_scene

PASSWORD = "small vehicles from above"
# No test may depend on a network, and the browser's own errands only disturb.
LAUNCH_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A busy machine is slow and not wrong: as patient with what is expected (by default 5 s) as
# Playwright is with everything else.
expect.set_options(timeout=30_000)


def chromium_path() -> str | None:
    """The Chromium that OD_CHROMIUM names; without that variable, the one of this machine."""
    named = os.environ.get("OD_CHROMIUM")
    usual = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
    found = (shutil.which(name) for name in ((named,) if named else usual))
    return next((path for path in found if path), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser; skips where there is none, unless OD_REQUIRE_BROWSER=1 demands one."""
    path = chromium_path()
    if path is None:
        reason = "No Chromium here; install one, or name one in OD_CHROMIUM."
        if os.environ.get("OD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=LAUNCH_ARGUMENTS)
        yield browser
        browser.close()


def drawn_image(path: Path, seed: int = 7, size_wh: tuple[int, int] = (1280, 720)) -> Path:
    """Write a drawn street scene as a JPEG."""
    path.write_bytes(_street_jpeg(seed, size_wh))
    return path


@functools.cache
def _street_jpeg(seed: int, size_wh: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw_scene(seed, size_wh, 14).image).save(content, "JPEG", quality=92)
    return content.getvalue()


def large_image(path: Path) -> Path:
    """Write a picture of 22 MiB, which goes in pieces."""
    Image.new("RGB", (3000, 2600), "grey").save(path, format="BMP")
    return path


def drawn_video(path: Path, frame_count: int, size_wh: tuple[int, int] = (640, 360)) -> Path:
    """Write a drawn street on which vehicles drive as an MP4 of 25 frames a second."""
    path.write_bytes(_street_mp4(frame_count, size_wh))
    return path


@functools.cache
def _street_mp4(frame_count: int, size_wh: tuple[int, int]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "street.mp4"
        with VideoWriter(path, size_wh) as writer:
            for index, scene in enumerate(draw_video_scene(11, frame_count, size_wh, 8)):
                writer.write(scene.image, index / 25)
        return path.read_bytes()


def sign_up(page: Page, base_url: str, email: str) -> None:
    """Create an account and open the page in its session, as if it had logged in before.

    That leaves a note of it in the page's storage.
    """
    keys = {"email": email, "password": PASSWORD}
    page.request.post(f"{base_url}/api/v1/users/", data=keys)
    tokens = page.request.post(f"{base_url}/api/v1/tokens/", data=keys).json()
    renew_at_ms = int(1000 * time.time()) + 600_000
    session = {
        "access": tokens["access"],
        "refresh": tokens["refresh"],
        "email": email,
        "renewAt": renew_at_ms,
    }
    page.add_init_script(
        f"""if (!localStorage.getItem({email!r})) {{
            localStorage.setItem({email!r}, "has logged in");
            localStorage.setItem("odproject.session", JSON.stringify({json.dumps(session)}));
        }}"""
    )
    page.goto(base_url)
    page.get_by_role("heading", name="Datasets", exact=True).wait_for()


def sign_up_by_form(page: Page, base_url: str, email: str) -> None:
    """Create an account on the page, which logs in at once."""
    page.goto(base_url)
    page.get_by_role("button", name="Create an account").click()
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    page.get_by_role("heading", name="Datasets", exact=True).wait_for()


def log_out(page: Page) -> None:
    """End the session and wait for the page, which begins anew by itself."""
    with page.expect_navigation():
        page.get_by_role("button", name="Log out").click()


def create_dataset(page: Page, name: str, tags: str = "") -> None:
    """Create a dataset, which is then the chosen one."""
    page.get_by_text("New dataset…").wait_for()
    if not page.get_by_role("button", name="Create dataset").is_visible():
        page.get_by_text("New dataset…").click()
    page.get_by_label("Name (3 to 40 characters)").fill(name)
    page.get_by_label("Tags (optional").fill(tags)
    page.get_by_role("button", name="Create dataset").click()
    page.get_by_role("heading", name=name, exact=True).wait_for()


def upload(page: Page, *paths: Path) -> Locator:
    """Upload files one after the other; returns the report once all have an entry."""
    page.locator("#drop").wait_for()  # it is there, and takes files, once a dataset is chosen
    page.get_by_label("Choose files").set_input_files([str(path) for path in paths])
    report = page.locator("#report")
    report.locator("h4").wait_for(timeout=60_000)
    page.locator("#uploading").wait_for(state="hidden", timeout=60_000)
    return report


def start_job(page: Page, model: str = "YOLO8s_FSR") -> Locator:
    """Start detection on the chosen dataset; returns the card of the new job."""
    cards = page.locator("article.job")
    known = cards.count()
    page.get_by_role("radio", name=model).check()
    page.get_by_role("button", name="Start detection").click()
    cards.nth(known).wait_for()
    return cards.first


def alter_answers(
    page: Page, address: str | re.Pattern[str], change: Callable[[Any], None]
) -> None:
    """Have the page read the JSON of an address as `change` leaves it."""

    def alter(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        change(document)
        route.fulfill(response=answer, json=document)

    page.route(address, alter)


class HeldRequests:
    """Holds back what a page asks of an address, before the service hears of it."""

    def __init__(self, page: Page, address: str | re.Pattern[str]) -> None:
        self._page = page
        self._held: list[Route] = []
        self._is_over = False
        page.route(address, self._hold)

    def _hold(self, route: Route) -> None:
        if self._is_over:
            route.continue_()
        else:
            self._held.append(route)

    def take(self) -> Route:
        """The oldest one, which is the caller's to go on with; waits until there is one."""
        while not self._held:
            self._page.wait_for_timeout(50)
        return self._held.pop(0)

    def let_go(self) -> None:
        """Let all of them pass, and every later one."""
        self._is_over = True
        while self._held:
            self._held.pop(0).continue_()


class LateAnswer:
    """Holds back the answer to the next GET of an address, as it is at that moment."""

    def __init__(self, page: Page, address: re.Pattern[str]) -> None:
        self._page = page
        self._address = address
        self._held: list[tuple[Route, APIResponse]] = []
        page.route(address, self._hold, times=1)

    def _hold(self, route: Route) -> None:
        self._held.append((route, route.fetch()))

    def wait_until_held(self) -> None:
        """Return when the service has given the answer, which is on its way from now on."""
        while not self._held:
            self._page.wait_for_timeout(50)

    def arrive(self) -> None:
        """Give the answer to the page; returns when it has read it."""
        route, answer = self._held.pop()
        with self._page.expect_event("requestfinished", lambda one: one == route.request):
            route.fulfill(response=answer)
        let_page_read(self._page)


def let_page_read(page: Page) -> None:
    """Return when the page has dealt with every answer that has come: a later one has been read."""
    page.evaluate("fetch('/livez').then(answer => answer.text())")


def drop_paths(page: Page, *paths: Path) -> None:
    """Drop files or folders on the zone for them, as a person does with the mouse."""
    zone = page.locator("#drop")
    zone.scroll_into_view_if_needed()
    box = zone.bounding_box()
    assert box is not None
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **place})
    devtools.detach()

"""Makes the README's pictures of the page again, from drawn scenes only.

    python -m tests.make_screenshots http://127.0.0.1:8080

Needs a running service and a Chromium (`tests.browser` tells where it is looked for). Registers a
user of its own on that service.
"""

import argparse
import tempfile
import uuid
import zipfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from inference.pipeline.encode import VideoWriter
from inference.scenes import draw_video_scene
from tests.browser import (
    chromium,
    create_dataset,
    drawn_image,
    sign_up,
    start_job,
    upload,
)

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SIZE_WH = (1120, 940)
LARGEST_BYTES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base_url")
    base_url = parser.parse_args().base_url.rstrip("/")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        _photograph(browser, base_url, Path(folder))


def _photograph(browser: Browser, base_url: str, folder: Path) -> None:
    page = browser.new_page(viewport={"width": SIZE_WH[0], "height": SIZE_WH[1]})
    sign_up(page, base_url, f"screenshots-{uuid.uuid4().hex[:8]}@example.com")
    page.locator("#email").evaluate("element => element.textContent = 'you@example.com'")
    create_dataset(page, "Ring road cameras", "road")
    create_dataset(page, "Morning flight", "drone, junction")
    upload(page, _video(folder / "junction.mp4"), _archive(folder))
    thumbnails = page.locator("#media-files img:not(.icon)")
    expect(thumbnails).to_have_count(4)
    for thumbnail in thumbnails.all():
        expect(thumbnail).not_to_have_js_property("naturalWidth", 0)
    _save(page, "page-upload.png")

    card = start_job(page)
    card.locator(".state.Completed").wait_for(timeout=300_000)
    card.locator("figure img").first.wait_for()
    page.locator(".jobs .heading").evaluate("element => element.scrollIntoView()")
    expect(card.locator("figure img, figure video")).to_have_count(4)
    expect(card.locator("figure video")).to_have_js_property("readyState", 4)
    page.mouse.move(0, 0)
    page.wait_for_timeout(3500)  # until the controls of the video fade
    _save(page, "page-results.png")


def _video(path: Path) -> Path:
    """Two seconds of a drawn street, five frames in each."""
    with VideoWriter(path, (960, 540)) as writer:
        scenes = draw_video_scene(11, 10, (960, 540), 8, frames_per_second=5)
        for index, scene in enumerate(scenes):
            writer.write(scene.image, index / 5)
    return path


def _archive(folder: Path) -> Path:
    """A zip as people make them: pictures, and a file that is none."""
    path = folder / "flight.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for seed in (7, 8, 9):
            archive.write(drawn_image(folder / f"{seed}.jpg", seed), f"street-{seed}.jpg")
        archive.writestr("flight-log.txt", "take-off 09:14")
    return path


def _save(page: Page, name: str) -> None:
    path = IMAGES / name
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=path)
    if path.stat().st_size >= LARGEST_BYTES:
        # Fewer colours make a page of photographs small; this method keeps the rare ones, of cars.
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
        small.save(path, optimize=True)
    size_bytes = path.stat().st_size
    if size_bytes >= LARGEST_BYTES:
        raise SystemExit(f"{name} has {size_bytes} bytes, more than the README should load.")
    print(f"{path}: {size_bytes} bytes")


if __name__ == "__main__":
    main()

"""Takes the README's pictures again, and with --pages every page of the service.

    make screenshots                   the pictures of the README, in docs/images
    make screenshots PAGES=folder      and every page, wide and narrow, light and dark

Starts a service of its own in a throw-away folder, fills it with drawn streets, and needs a
Chromium (`tests.browser` tells where it is looked for).
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.browser import chromium
from tests.screenshots import admin_pages, dashboard
from tests.screenshots.camera import SIZES_WH, Camera, save_picture, show_lazy_pictures
from tests.screenshots.example import Example, Media, make_example, paused_workers
from tests.service import Service, running_service

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
LARGEST_BYTES = 250_000
# A stopped worker neither loses its work nor counts as dead, for as long as pictures are taken.
PATIENCE = {"OD_UNIT_LEASE_SECONDS": "3600", "OD_UNIT_SILENT_SECONDS": "3600"}

# A later frame of the video; resolves when the page has been painted with it.
LATER_FRAME = """video => new Promise((resolve) => {
    const painted = () => requestAnimationFrame(() => requestAnimationFrame(resolve));
    video.requestVideoFrameCallback(painted);
    video.currentTime = 1.5;
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=Path, help="a folder for every page")
    parser.add_argument("--no-readme", action="store_true", help="leave docs/images as it is")

    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), **PATIENCE) as service,
        chromium() as browser,
    ):
        media = Media(Path(folder))
        example = make_example(service, media)
        admin = _admin_page(browser, service)
        admin_pages.administrate(admin, example)
        if not arguments.no_readme:
            _readme_pictures(browser, service, example, admin)
        if arguments.pages:
            camera = Camera(arguments.pages)
            admin.goto("/admin/inference/workerheartbeat/")  # before they are silent
            camera.take(admin, "admin-workers-ready", reload=True)
            with paused_workers(service):
                _take_admin(camera, browser, service, example, admin)
                dashboard.take_all(camera, browser, service.base_url, media)
            camera.check()
            print(f"{len(list(arguments.pages.glob('*.png')))} pictures are in {arguments.pages}")


def _admin_page(browser: Browser, service: Service) -> Page:
    width, height = SIZES_WH["wide"]
    page = browser.new_page(base_url=service.base_url, viewport={"width": width, "height": height})
    admin_pages.log_in(page, service.admin_email, service.admin_password)
    return page


def _take_admin(
    camera: Camera, browser: Browser, service: Service, example: Example, admin: Page
) -> None:
    stranger = browser.new_page(base_url=service.base_url)
    stranger.goto("/admin/login/")
    camera.take(stranger, "admin-login", reload=True)
    stranger.goto("/api/docs/")
    stranger.locator(".opblock").first.wait_for()
    camera.take(stranger, "api-docs")
    stranger.close()
    for name, path in admin_pages.pages_of(example).items():
        admin.goto(path)
        camera.take(admin, name, reload=True)


def _readme_pictures(browser: Browser, service: Service, example: Example, admin: Page) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    dashboard.log_in(page, service.base_url, example.email)
    page.get_by_role("radio", name="Morning flight").check()
    expect(page.locator("#quote")).to_contain_text("Price: ")
    expect(page.locator("#media-files img:not(.icon)")).to_have_count(4)
    show_lazy_pictures(page)
    save_picture(page, IMAGES / "page-home.png", largest_bytes=LARGEST_BYTES)
    results = dashboard.open_results(page, example.completed_id)
    expect(results.locator("video")).to_have_js_property("readyState", 4)
    page.locator(f"[data-job='{example.completed_id}']").scroll_into_view_if_needed()
    results.locator("video").evaluate(LATER_FRAME)  # where it stays: what moves is painted anew
    save_picture(page, IMAGES / "page-results.png", largest_bytes=LARGEST_BYTES)
    page.close()
    admin.goto(f"/admin/datasets/dataset/{example.blocked_id}/change/")
    show_lazy_pictures(admin)
    save_picture(admin, IMAGES / "admin-dataset.png", largest_bytes=LARGEST_BYTES)


if __name__ == "__main__":
    main()

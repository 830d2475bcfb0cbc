"""Every place of the dashboard that people come to."""

from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import PASSWORD, create_dataset, upload
from tests.screenshots.camera import Camera
from tests.screenshots.example import NEWCOMER, OWNER, Media


def log_in(page: Page, base_url: str, email: str) -> None:
    """Log in and wait until everything is there."""
    page.goto(base_url)
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_role("heading", name="Datasets", exact=True).wait_for()
    expect(page.locator("#connection")).to_have_text("Live")


def open_results(page: Page, job_id: int) -> Locator:
    """The results of a job, opened."""
    card = page.locator(f"[data-job='{job_id}']")
    card.get_by_role("button", name="Show results").click()
    results = card.locator(".results")
    results.locator("tbody tr").first.wait_for()
    expect(results.locator("tbody")).not_to_contain_text("counting")
    return results


def take_all(camera: Camera, browser: Browser, base_url: str, media: Media) -> None:
    """Every place: of a visitor, of a newcomer, and of somebody who has used the service."""
    page = browser.new_page()
    _visitor(camera, page, base_url)
    log_in(page, base_url, NEWCOMER)
    camera.take(page, "home-of-a-newcomer")
    page.close()
    page = browser.new_page()
    log_in(page, base_url, OWNER)
    _workplace(camera, page)
    _results(camera, page)
    _upload(camera, page, media)
    page.close()


def _visitor(camera: Camera, page: Page, base_url: str) -> None:
    page.goto(base_url)
    page.get_by_label("E-mail address").fill(NEWCOMER)
    page.get_by_label("Password", exact=True).fill("not the password")
    camera.take(page, "log-in")
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_role("alert").wait_for()
    camera.take(page, "log-in-refused")
    page.get_by_role("button", name="Create an account").click()
    camera.take(page, "sign-up")


def _workplace(camera: Camera, page: Page) -> None:
    page.get_by_role("radio", name="Morning flight").check()
    expect(page.locator("#media-files li")).not_to_have_count(0)
    camera.take(page, "home")
    page.get_by_role("button", name="Rename or tag").click()
    camera.take(page, "dialog-rename", whole=False)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete", exact=True).click()
    camera.take(page, "dialog-delete", whole=False)
    page.keyboard.press("Escape")
    page.locator("#open-tokens").click()
    page.locator("#movements tr").first.wait_for()
    camera.take(page, "dialog-tokens", whole=False)
    page.keyboard.press("Escape")
    page.locator("#open-keys").click()
    camera.take(page, "dialog-keys", whole=False)
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="School street").check()
    expect(page.locator("#blocked")).to_be_visible()
    camera.take(page, "dataset-blocked", whole=False)


def _results(camera: Camera, page: Page) -> None:
    states = {"completed": "Completed", "failed": "Failed", "aborted": "Aborted"}
    numbers = {}
    for name, state in states.items():
        card = page.locator(f"article.job:has(.state.{state})").last
        numbers[name] = int(card.get_attribute("data-job") or 0)
    results = open_results(page, numbers["completed"])
    for figure in results.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("img, video").first.wait_for()
    results.scroll_into_view_if_needed()
    camera.take(page, "results")
    results.get_by_role("slider", name="Confidence").fill("60")
    results.get_by_role("slider", name="Place in").fill("2.5")
    for figure in results.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("rect").first.wait_for(state="attached")
    camera.take(page, "results-at-60-percent")
    results.get_by_role("button", name="Enlarge").first.click()
    page.locator("#viewer-picture img").wait_for()
    camera.take(page, "viewer", whole=False)
    page.get_by_role("button", name="Full size").click()
    camera.take(page, "viewer-full-size", whole=False)
    page.keyboard.press("Escape")


def _upload(camera: Camera, page: Page, media: Media) -> None:
    create_dataset(page, "Evening flight", "drone")
    camera.take(page, "dataset-empty", whole=False)
    upload(page, media.picture(61), media.archive())
    page.locator("#report").scroll_into_view_if_needed()
    camera.take(page, "upload-report", whole=False)

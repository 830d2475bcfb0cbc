"""A model's life in a real browser against the running service: upload, test, use, comparison."""

import os
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import chromium, drawn_image
from tests.test_browser_admin import Customer, Window
from tests.weights_makers import tiny_model, write_checkpoint

pytestmark = pytest.mark.service

PATIENCE_SECONDS = 180
SHOTS = os.environ.get("OD_TEST_SHOTS")  # a folder, for whoever wants to look at the pages


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    # Before Playwright's loop runs, and torch starts its threads.
    folder = tmp_path_factory.mktemp("weights")
    return write_checkpoint(folder / "tiny.pt", tiny_model(folder))


@pytest.fixture(scope="module")
def browser(weights):
    with chromium() as running:
        yield running


def until(find, what: str):
    """Ask again until there is an answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(1)
    return found


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def finished_job(customer: Customer, dataset_id: int, version: str) -> int:
    body = {"dataset_id": dataset_id, "model_version": version}
    job_id = customer.ask("POST", "/api/v1/jobs/", json=body).json()["id"]

    def state() -> str:
        now = customer.ask("GET", f"/api/v1/jobs/{job_id}/").json()["state"]
        return "" if now in ("Pending", "Running") else now

    assert until(state, "end of the job") == "Completed"
    return job_id


def test_weights_larger_than_other_bodies_are_taken_in_and_looked_at(browser, service, tmp_path):
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"no weights, but as many bytes as some have" * 300_000)  # 12.6 MB
    root = Window(browser, service.base_url)
    root.log_in(service.admin_email, service.admin_password)
    page = root.page
    page.goto("/admin/inference/modelversion/add/")
    page.get_by_label("Weights").set_input_files(wrong)
    page.get_by_label("Version").fill("wrong-1")
    page.get_by_role("button", name="Upload a model").click()
    expect(page.get_by_text("The file is no ONNX model.")).to_be_visible(timeout=90_000)
    page.context.close()


def test_administrator_brings_a_model_that_a_customer_uses_and_compares(
    browser, service, weights, tmp_path
):
    root = Window(browser, service.base_url)
    root.log_in(service.admin_email, service.admin_password)
    page = root.page
    page.get_by_role("link", name="Model versions").first.click()
    page.locator('a[href$="/modelversion/add/"]').first.click()
    page.get_by_label("Weights").set_input_files(weights)
    page.get_by_label("Version").fill("tiny-1")
    page.get_by_label("Default options").fill('{"image_size": 320}')
    shot(page, "upload")
    page.get_by_role("button", name="Upload a model").click()
    expect(page.get_by_text("tiny-1 waits for its test run.")).to_be_visible(timeout=90_000)
    address = page.url

    def tested() -> bool:
        page.goto(address)
        return page.get_by_text("found 0 of 20 vehicles, 0 false").is_visible()

    until(tested, "test run")
    expect(page.get_by_alt_text("Detections")).to_be_visible()
    shot(page, "tested")
    page.get_by_role("link", name="Offer to users").click()
    page.get_by_role("button", name="Offer to users").click()
    expect(page.get_by_text("tiny-1 is offered to users.")).to_be_visible()
    shot(page, "offered")

    customer = Customer(service.base_url)
    versions = customer.ask("GET", "/api/v1/models/").json()["results"]
    assert "tiny-1" in [one["version"] for one in versions]
    street = drawn_image(tmp_path / "street.jpg")
    dataset_id = customer.create_dataset("models", street)
    first = finished_job(customer, dataset_id, "YOLO8s_FSR")
    second = finished_job(customer, dataset_id, "tiny-1")
    compared = customer.ask("GET", f"/api/v1/jobs/{first}/comparison/?with={second}").json()
    assert compared["totals"]["only_first"] >= 8
    assert (compared["totals"]["matched"], compared["totals"]["agreement"]) == (0, 0.0)
    picture = customer.ask("GET", compared["files"][0]["picture_url"])
    assert picture.headers["content-type"] == "image/jpeg"

    page.goto(f"/admin/inference/job/{first}/change/")
    page.get_by_role("link", name=f"job {second} (tiny-1)").click()
    drawn = page.get_by_alt_text("Differences in street.jpg, frame 0")
    expect(drawn).to_be_visible()
    drawn.scroll_into_view_if_needed()
    until(lambda: drawn.evaluate("image => image.complete && image.naturalWidth > 0"), "picture")
    shot(page, "comparison")

    page.goto(address)
    page.get_by_role("link", name="Retire").click()
    page.get_by_role("button", name="Retire").click()
    expect(page.get_by_text("tiny-1 is retired.")).to_be_visible()
    body = {"dataset_id": dataset_id, "model_version": "tiny-1"}
    assert customer.ask("POST", "/api/v1/jobs/", json=body).status_code == 400
    root.assert_quiet()
    root.context.close()

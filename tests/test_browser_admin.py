"""The admin, used in a real browser against the running service."""

import uuid
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import PASSWORD, chromium, drawn_image
from tests.screenshots.admin_pages import LISTS, find_user, give_role

pytestmark = pytest.mark.service

SIZES_WH = {"wide": (1440, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    # Only for this module: Django refuses database work in a thread where Playwright's loop runs.
    with chromium() as running:
        yield running


class Window:
    """A page of its own session, with everything it asked for and complained about."""

    def __init__(self, browser: Browser, base_url: str, **options) -> None:
        options = {"viewport": {"width": 1440, "height": 900}, **options}
        self.context = browser.new_context(base_url=base_url, **options)
        self.page: Page = self.context.new_page()
        self.base_url = base_url
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page.on("request", self._note_host)
        self.page.on("console", self._note_complaint)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note_host(self, request) -> None:
        if not request.url.startswith("data:"):
            self.hosts.add(urlsplit(request.url).netloc)

    def _note_complaint(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.location['url']}: {message.text}")

    def log_in(self, email: str, password: str) -> None:
        self.page.goto("/admin/login/")
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()

    def status_of(self, path: str) -> int:
        """What the server answers to this session, without showing it."""
        return self.context.request.get(path, max_redirects=0).status

    def assert_quiet(self) -> None:
        assert self.complaints == []
        assert self.hosts == {urlsplit(self.base_url).netloc}


@pytest.fixture
def window(browser, service):
    """Opens windows; they are closed after the test."""
    opened: list[Window] = []

    def open_window(**options) -> Window:
        opened.append(Window(browser, service.base_url, **options))
        return opened[-1]

    yield open_window
    for one in opened:
        one.context.close()


class Customer:
    """A user of the API."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.headers: dict[str, str] = {}
        self.email = f"{uuid.uuid4().hex[:12]}@example.com"
        keys = {"email": self.email, "password": PASSWORD}
        self.ask("POST", "/user/registration", json={**keys, "confirmPassword": PASSWORD})
        access = self.ask("POST", "/user/", json=keys).json()["access"]
        self.headers["Authorization"] = f"Bearer {access}"

    def ask(self, method: str, path: str, **content) -> httpx.Response:
        url = self.base_url + path
        return httpx.request(method, url, headers=self.headers, timeout=120, **content)

    def create_dataset(self, name: str, picture: Path) -> int:
        answer = self.ask("POST", "/datasets/", data={"datasetName": name, "tags": "drone"})
        files = {"file": (picture.name, picture.read_bytes())}
        uploaded = self.ask("POST", "/upload/", data={"datasetName": name}, files=files)
        assert uploaded.status_code == 201
        return int(answer.json()["dataset"]["dataset_id"])

    def balance(self) -> float:
        return float(self.ask("GET", "/token").json()["tokenBalance"])


@pytest.fixture
def customer(service) -> Customer:
    return Customer(service.base_url)


def test_administrator_tops_up_and_nobody_else_has_more(window, service, customer):
    stranger = Customer(service.base_url)
    root = window()
    root.log_in(service.admin_email, service.admin_password)
    page = root.page
    find_user(page, customer.email)
    page.get_by_role("link", name="Top up tokens").click()
    expect(page.get_by_text(f"{customer.email} can spend 1,000.00 tokens now")).to_be_visible()

    page.get_by_role("button", name="Top up tokens").click()
    expect(page.get_by_text("This field is required.")).to_have_count(2)
    assert customer.balance() == 1000.0

    page.get_by_label("Tokens to add").fill("250.5")
    page.get_by_label("Reason").fill("refund of a failed flight")
    page.get_by_role("button", name="Top up tokens").click()
    told = f"250.50 tokens were added to the balance of {customer.email}."
    expect(page.get_by_text(told)).to_be_visible()
    assert customer.balance() == 1250.5
    assert stranger.balance() == 1000.0

    page.goto(f"/admin/billing/transfer/?q={customer.email}")
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("250.50")
    expect(rows.first).to_contain_text(service.admin_email)
    expect(rows.first).to_contain_text("refund of a failed flight")
    movement = customer.ask("GET", "/api/v1/ledger/").json()["results"][0]
    assert (movement["amount_tokens"], movement["reason"]) == (250.5, "refund of a failed flight")
    root.assert_quiet()


def test_moderator_blocks_and_the_owner_reads_why(window, service, customer, dataset_id):
    moderator = Customer(service.base_url)
    root = window()
    root.log_in(service.admin_email, service.admin_password)
    give_role(root.page, moderator.email, "Moderators")
    root.assert_quiet()

    seat = window()
    seat.log_in(moderator.email, PASSWORD)
    page = seat.page
    expect(page.get_by_role("link", name="Datasets").first).to_be_visible()
    for name in ("Ledger", "Users", "Jobs", "Groups"):
        expect(page.get_by_role("link", name=name, exact=True)).to_have_count(0)
    for path in ("billing/transfer", "accounts/user", "inference/job", "auth/group"):
        assert seat.status_of(f"/admin/{path}/") == 403

    page.goto(f"/admin/datasets/dataset/{dataset_id}/change/")
    picture = page.locator("figure img.od-thumbnail")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("naturalWidth", 320)
    page.get_by_role("link", name="Block the dataset").click()
    page.get_by_label("Reason").fill("licence plates")
    page.get_by_role("button", name="Block the dataset").click()
    expect(page.get_by_text("The dataset Old bridge is blocked: licence plates")).to_be_visible()
    history = page.locator("#moderation-group")
    expect(history).to_contain_text(moderator.email)
    expect(history).to_contain_text("licence plates")
    seat.assert_quiet()

    shown = customer.ask("GET", f"/api/v1/datasets/{dataset_id}/").json()
    assert (shown["is_blocked"], shown["block_reason"]) == (True, "licence plates")
    keys = {"datasetName": "Old bridge", "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    refused = customer.ask("POST", "/inference/", json=keys)
    assert refused.status_code == 403
    assert "licence plates" in refused.json()["message"]
    assert moderator.ask("GET", f"/api/v1/datasets/{dataset_id}/").status_code == 404


def test_user_without_a_role_sees_none_of_it(window, service, customer):
    visitor = window()
    visitor.log_in(customer.email, PASSWORD)
    expect(visitor.page.get_by_text("enter the correct email and password")).to_be_visible()
    for path in ("", "accounts/user/", "billing/transfer/", "datasets/dataset/"):
        assert visitor.status_of(f"/admin/{path}") == 302
    keys = {"topUpUserEmail": customer.email, "topUpAmount": 5}
    assert customer.ask("PATCH", "/token", json=keys).status_code == 403
    assert customer.balance() == 1000.0
    visitor.assert_quiet()


@pytest.fixture
def dataset_id(customer, tmp_path) -> int:
    return customer.create_dataset("Old bridge", drawn_image(tmp_path / "street.jpg"))


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("narrow", "dark")])
def test_every_page_fits_and_asks_no_other_host(window, service, dataset_id, size, scheme):
    width, height = SIZES_WH[size]
    root = window(viewport={"width": width, "height": height}, color_scheme=scheme)
    root.log_in(service.admin_email, service.admin_password)
    own = (
        f"/admin/datasets/dataset/{dataset_id}/change/",
        f"/admin/datasets/dataset/{dataset_id}/block/",
        f"/admin/datasets/dataset/{dataset_id}/history/",
    )
    for path in (*LISTS, *own):
        answer = root.page.goto(path)
        assert (path, answer.status) == (path, 200)
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert root.page.evaluate(fits), path
        is_dark = root.page.evaluate("document.documentElement.classList.contains('dark')")
        assert is_dark == (scheme == "dark"), path
    root.assert_quiet()

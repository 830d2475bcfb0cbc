"""Every page of the admin that people come to; the browser tests open the same ones."""

from playwright.sync_api import Page

from tests.screenshots.example import MODERATOR, SUPPORT, Example

LISTS = (
    "/admin/",
    "/admin/accounts/user/",
    "/admin/accounts/user/1/change/",
    "/admin/accounts/user/1/top-up/",
    "/admin/accounts/apikey/",
    "/admin/accounts/webhook/",
    "/admin/auth/group/",
    "/admin/auth/group/1/change/",
    "/admin/billing/transfer/",
    "/admin/billing/hold/",
    "/admin/billing/price/",
    "/admin/billing/price/add/",
    "/admin/datasets/dataset/",
    "/admin/datasets/mediafile/",
    "/admin/inference/job/",
    "/admin/inference/jobfile/",
    "/admin/inference/workunit/",
    "/admin/inference/modelversion/",
    "/admin/inference/modelversion/1/change/",
    "/admin/inference/workerheartbeat/",
)


def pages_of(example: Example) -> dict[str, str]:
    """A name and an address for each page, those about one row of the example included."""
    user = f"/admin/accounts/user/{example.owner_id}"
    pages = {path.strip("/").replace("/", "-"): path for path in LISTS}
    rows = {
        "user": f"{user}/change/",
        "user-top-up": f"{user}/top-up/",
        "user-history": f"{user}/history/",
        "ledger-of-user": f"/admin/billing/transfer/?q={example.email}",
        "transfer": "/admin/billing/transfer/3/change/",
        "hold": "/admin/billing/hold/1/change/",
        "datasets-flagged": "/admin/datasets/dataset/?moderation=flagged",
        "dataset": f"/admin/datasets/dataset/{example.flight_id}/change/",
        "dataset-blocked": f"/admin/datasets/dataset/{example.blocked_id}/change/",
        "dataset-block": f"/admin/datasets/dataset/{example.flight_id}/block/",
        "dataset-restore": f"/admin/datasets/dataset/{example.blocked_id}/restore/",
        "dataset-history": f"/admin/datasets/dataset/{example.blocked_id}/history/",
        "file": "/admin/datasets/mediafile/1/change/",
        "job-completed": f"/admin/inference/job/{example.completed_id}/change/",
        "job-failed": f"/admin/inference/job/{example.failed_id}/change/",
        "job-running": f"/admin/inference/job/{example.running_id}/change/",
        "job-abort": f"/admin/inference/job/{example.running_id}/abort/",
        "job-rerun": f"/admin/inference/job/{example.failed_id}/run-again/",
        "job-history": f"/admin/inference/job/{example.completed_id}/history/",
        "job-file": "/admin/inference/jobfile/1/change/",
        "unit": "/admin/inference/workunit/1/change/",
        "missing": "/admin/datasets/dataset/999999/change/",
    }
    return pages | {f"admin-{name}": path for name, path in rows.items()}


def log_in(page: Page, email: str, password: str) -> None:
    """Enter the admin."""
    page.goto("/admin/login/")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin/")


def find_user(page: Page, email: str) -> None:
    """Search the list of users and open the one."""
    page.goto("/admin/accounts/user/")
    page.locator("input[name=q]").fill(email)
    page.locator("input[name=q]").press("Enter")
    page.get_by_role("link", name=email).click()
    page.get_by_role("link", name="Top up tokens").wait_for()


def give_role(page: Page, email: str, role: str) -> None:
    """Make a user an administrator with one role."""
    find_user(page, email)
    page.get_by_label("Administrator", exact=False).first.check()
    page.locator("#id_groups_from").select_option(label=role)
    page.locator("#id_groups_add, #id_groups_add_link").click()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("was changed successfully").wait_for()


def _answer(page: Page, address: str, button: str, **answers: str) -> None:
    """Fill in a form of one action and send it."""
    page.goto(address)
    for name, text in answers.items():
        page.locator(f"[name={name}]").fill(text)
    page.get_by_role("button", name=button).click()
    page.wait_for_url("**/change/**")


def administrate(page: Page, example: Example) -> None:
    """Leave something to see in each history: roles, a top-up, a flag, a block."""
    give_role(page, MODERATOR, "Moderators")
    give_role(page, SUPPORT, "Support")
    user = f"/admin/accounts/user/{example.owner_id}"
    _answer(page, f"{user}/top-up/", "Top up tokens", amount="500", reason="Pilot project, May")
    flagged = f"/admin/datasets/dataset/{example.flagged_id}"
    _answer(page, f"{flagged}/flag/", "Flag", reason="Are people to be seen?")
    blocked = f"/admin/datasets/dataset/{example.blocked_id}"
    _answer(page, f"{blocked}/flag/", "Flag", reason="Children in the second picture?")
    _answer(page, f"{blocked}/block/", "Block", reason="Children can be recognised.")

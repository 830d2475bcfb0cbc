"""The Django admin: who sees which page, and what each action does and does not do."""

import io
import re
from html import unescape

import pytest
from django.apps import apps
from django.contrib.admin import ModelAdmin, site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import DatabaseError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from PIL import Image
from rest_framework.test import APIClient

from accounts.models import Event, Session, User, Webhook
from accounts.services import log_in
from accounts.webhooks import create_webhook, rotate_secret, switch_off_webhook
from billing import ledger
from billing.models import Price, Transfer
from billing.selectors import balance_hundredths, current_prices, ledger_breaches
from billing.statements import month_name, months_of
from datasets.models import Dataset, MediaFile, ModerationAction
from inference import queue, registry, services, submission
from inference.models import Job, ModelVersion, WorkerHeartbeat
from inference.pipeline.weights_file import WeightsFacts
from inference.selectors import settlement_breaches
from tests.clients import client_of, key_of
from tests.factories import PASSWORD, add_media_file, dataset_id_of, make_dataset, make_user
from tests.screenshots import admin_pages

pytestmark = pytest.mark.django_db

ROLES = ("superuser", "Support", "Moderators", "none", "user")
LISTS = {
    "accounts/user": {"superuser", "Support"},
    "accounts/apikey": {"superuser", "Support"},
    "accounts/webhook": {"superuser", "Support"},
    "auth/group": {"superuser"},
    "billing/transfer": {"superuser", "Support"},
    "billing/hold": {"superuser", "Support"},
    "billing/price": {"superuser", "Support"},
    "datasets/dataset": {"superuser", "Support", "Moderators"},
    "datasets/mediafile": {"superuser", "Moderators"},
    "inference/job": {"superuser", "Support"},
    "inference/jobfile": {"superuser", "Support"},
    "inference/workunit": {"superuser", "Support"},
    "inference/modelversion": {"superuser", "Support"},
    "inference/workerheartbeat": {"superuser", "Support"},
}


def administrator(role: str) -> User:
    if role == "superuser":
        return make_user(staff=True)
    return make_user() if role == "user" else make_user(role=role)


def browser_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24), "teal").save(content, "jpeg")
    return content.getvalue()


@pytest.fixture
def admin() -> User:
    return make_user("root@example.org", staff=True)


@pytest.fixture
def owner() -> User:
    return make_user("owner@example.org")


@pytest.fixture
def webhook(owner) -> Webhook:
    return create_webhook(user=owner, url="https://8.8.8.8/hook")


@pytest.fixture
def dataset(owner) -> Dataset:
    return make_dataset(owner)


@pytest.fixture
def media_file(dataset) -> MediaFile:
    media_file = add_media_file(dataset, name="street.jpg", content=b"x" * 1500)
    media_file.thumbnail = default_storage.save("thumbnails/test.jpg", ContentFile(jpeg()))
    media_file.save()
    return media_file


@pytest.fixture
def job(owner, media_file) -> Job:
    return submission.submit_job(
        user=owner, dataset_id=dataset_id_of(owner), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def end(job: Job) -> None:
    services.abort_job(job_id=job.pk, reason="enough")


def asking_page(one, name: str) -> str:
    options = one._meta
    return f"/admin/{options.app_label}/{options.model_name}/{one.pk}/{name}/"


def hidden_key(page: bytes) -> str:
    found = re.search(rb'name="key"[^>]*value="(\w+)"|value="(\w+)"[^>]*name="key"', page)
    return (found[1] or found[2]).decode()


# -- who sees what -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_each_role_reaches_the_lists_and_pages_that_are_its_own(role, job, media_file, webhook):
    WorkerHeartbeat.objects.create(name="w", last_seen_at=job.created_at)
    key_of(job.user)
    browser = browser_of(administrator(role))
    refused = 302 if role == "user" else 403  # a user is sent to the log-in
    for name, roles in LISTS.items():
        expected = 200 if role in roles else refused
        assert browser.get(f"/admin/{name}/").status_code == expected, name
        assert browser.get(f"/admin/{name}/", {"q": "12"}).status_code == expected, name
        first = apps.get_model(*name.split("/")).objects.order_by("pk").first()
        page = f"/admin/{name}/{first.pk}/"
        assert browser.get(f"{page}change/").status_code == expected, page
        assert browser.get(f"{page}history/").status_code == expected, page
        # Nobody deletes anything but a group.
        deletes = 200 if (role, name) == ("superuser", "auth/group") else refused
        assert browser.get(f"{page}delete/").status_code == deletes, page


def test_nobody_without_a_session_sees_anything(job):
    for name in LISTS:
        answer = Client().get(f"/admin/{name}/")
        assert (answer.status_code, answer["Location"]) == (
            302,
            f"/admin/login/?next=/admin/{name}/",
        )


@pytest.mark.parametrize("role", ROLES)
def test_front_page_lists_only_what_the_role_can_read(role):
    page = browser_of(administrator(role)).get("/admin/", follow=role != "user").content.decode()
    hidden = {"datasets/mediafile", "inference/jobfile", "inference/workunit"}
    for name, roles in LISTS.items():
        listed = f'href="/admin/{name}/"' in page
        assert listed == (role in roles and name not in hidden), name


ACTIONS = {
    ("user", "top-up"): {"superuser", "Support"},
    ("webhook", "switch-off"): {"superuser", "Support"},
    ("webhook", "switch-on"): {"superuser", "Support"},
    ("dataset", "flag"): {"superuser", "Moderators"},
    ("dataset", "block"): {"superuser", "Moderators"},
    ("dataset", "restore"): {"superuser", "Moderators"},
    ("job", "abort"): {"superuser"},
    ("job", "run-again"): {"superuser"},
}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_acts_only_where_it_may(role, owner, dataset, job, webhook):
    objects = {"user": owner, "dataset": dataset, "job": job, "webhook": webhook}
    browser = browser_of(administrator(role))
    transfers = Transfer.objects.count()
    for (kind, name), roles in ACTIONS.items():
        page = asking_page(objects[kind], name)
        expected = 200 if role in roles else (302 if role == "user" else 403)
        assert browser.get(page).status_code == expected, page
        if role not in roles:
            answers = {"amount": "5", "reason": "because", "key": "k"}
            assert browser.post(page, answers).status_code == expected, page
    # Asking changes nothing, and a refused answer changes nothing either.
    job.refresh_from_db()
    dataset.refresh_from_db()
    assert Webhook.objects.get().off_since is None
    assert Transfer.objects.count() == transfers
    assert (job.state, dataset.blocked_at, dataset.flagged_at) == ("Pending", None, None)
    assert not ModerationAction.objects.exists()
    assert not LogEntry.objects.exists()


def test_pictures_are_for_moderators_and_not_for_support(media_file):
    address = f"/admin/datasets/mediafile/{media_file.pk}/thumbnail/"
    answer = browser_of(make_user(role="Moderators")).get(address)
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/jpeg")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Cache-Control"] == "private, max-age=3600"
    assert answer.content == jpeg()
    assert browser_of(make_user(role="Support")).get(address).status_code == 403
    assert browser_of(media_file.dataset.user).get(address).status_code == 302
    page = f"/admin/datasets/dataset/{media_file.dataset_id}/change/"
    assert address in browser_of(make_user(role="Moderators")).get(page).content.decode()
    assert address not in browser_of(make_user(role="Support")).get(page).content.decode()


def test_file_without_a_thumbnail_has_none_to_show(admin, dataset):
    media_file = add_media_file(dataset)
    address = f"/admin/datasets/mediafile/{media_file.pk}/thumbnail/"
    assert browser_of(admin).get(address).status_code == 404
    page = browser_of(admin).get(f"/admin/datasets/dataset/{dataset.pk}/change/").content.decode()
    assert "no picture" in page
    assert address not in page


def test_roles_hold_no_permission_that_is_not_theirs():
    held = {
        group.name: set(group.permissions.values_list("codename", flat=True))
        for group in Group.objects.all()
    }
    assert held["Moderators"] == {
        "view_dataset",
        "moderate_dataset",
        "view_mediafile",
        "view_moderationaction",
    }
    assert held["Support"] - {"top_up", "switch_off_webhook"} == {
        name for name in held["Support"] if name.startswith("view_")
    }
    assert "view_mediafile" not in held["Support"]


def test_permissions_of_the_roles_are_the_ones_that_django_makes():
    for permission in Permission.objects.filter(codename__startswith="view_"):
        model = permission.content_type.model_class()
        assert permission.name == f"Can view {model._meta.verbose_name_raw}"


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["superuser", "Support"])
def test_top_up_adds_the_tokens_and_keeps_who_and_why(role, owner):
    actor = administrator(role)
    browser = browser_of(actor)
    key = hidden_key(browser.get(asking_page(owner, "top-up")).content)
    answers = {"amount": "250.50", "reason": "refund of a failed flight", "key": key}
    answer = browser.post(asking_page(owner, "top-up"), answers, follow=True)
    assert answer.redirect_chain == [(f"/admin/accounts/user/{owner.pk}/change/", 302)]
    assert (
        "250.50 tokens were added to the balance of owner@example.org." in answer.content.decode()
    )
    assert balance_hundredths(user=owner) == 100_000 + 25_050
    transfer = Transfer.objects.get(kind="top_up")
    assert (transfer.actor, transfer.reason) == (actor, "refund of a failed flight")
    assert Event.objects.get(user=owner).kind == "balance.topped_up"
    assert LogEntry.objects.get().user == actor
    assert ledger_breaches() == []


@pytest.mark.parametrize("changes", [{}, {"reason": "another gift"}, {"amount": "6"}])
def test_top_up_sent_twice_counts_once_and_the_second_time_says_so(admin, owner, changes):
    browser = browser_of(admin)
    answers = {"amount": "5", "reason": "gift", "key": "0123456789abcdef"}
    assert browser.post(asking_page(owner, "top-up"), answers).status_code == 302
    again = browser.post(asking_page(owner, "top-up"), answers | changes)
    assert "This form was sent before" in again.content.decode()
    assert balance_hundredths(user=owner) == 100_500
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        *((amount, "gift") for amount in ("", "0", "-1", "0.001", "20000.01", "NaN")),
        *(("5", reason) for reason in ("", "   ", "x" * 201)),
    ],
)
def test_impossible_top_up_is_refused_on_the_page(admin, owner, amount, reason):
    answers = {"amount": amount, "reason": reason, "key": "k"}
    answer = browser_of(admin).post(asking_page(owner, "top-up"), answers)
    assert answer.status_code == 200
    assert not Transfer.objects.filter(kind="top_up").exists()
    assert not LogEntry.objects.exists()


def test_action_of_a_list_asks_for_the_one_that_was_chosen(admin, owner):
    browser = browser_of(admin)
    chosen = {"action": "top-up", "_selected_action": [owner.pk]}
    answer = browser.post("/admin/accounts/user/", chosen)
    assert (answer.status_code, answer["Location"]) == (302, asking_page(owner, "top-up"))
    two = {**chosen, "_selected_action": [owner.pk, admin.pk]}
    answer = browser.post("/admin/accounts/user/", two, follow=True)
    assert "Top up tokens: choose exactly one." in answer.content.decode()
    assert not Transfer.objects.filter(kind="top_up").exists()


@pytest.mark.parametrize(
    ("role", "status"),
    [("superuser", 200), ("Support", 200), ("none", 200), ("Moderators", 403), ("user", 403)],
)
def test_api_lets_every_administrator_top_up_whose_role_is_not_another(role, status, owner):
    client = APIClient()
    token = log_in(email=administrator(role).email, password=PASSWORD).access
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    answer = client.patch("/token", {"topUpUserEmail": owner.email, "topUpAmount": "5"})
    assert answer.status_code == status
    assert balance_hundredths(user=owner) == (100_500 if status == 200 else 100_000)


def test_ledger_is_found_by_user_and_by_job(admin, owner, job):
    other = make_user("other@example.org")
    balance_hundredths(user=other)
    browser = browser_of(admin)

    def found(query: str) -> int:
        return browser.get("/admin/billing/transfer/", {"q": query}).context["cl"].result_count

    assert found("owner@example.org") == 2  # the welcome and the hold
    assert found("other@") == 1
    assert found(str(job.pk)) == 1
    assert found(str(job.pk + 1)) == 0
    page = browser.get("/admin/billing/transfer/", {"kind__exact": "hold"}).content.decode()
    assert "available → held" in page
    assert "1.50" in page
    by_job = browser.get("/admin/billing/transfer/", {"job_id": job.pk})
    assert by_job.context["cl"].result_count == 1


@pytest.mark.parametrize("role", ROLES)
def test_statement_of_a_user_is_for_those_who_may_see_the_ledger(role, owner):
    ledger.open_accounts(user=owner)
    page, month = f"/admin/accounts/user/{owner.pk}", month_name(months_of(user=owner)[0])
    browser = browser_of(administrator(role))
    answer = browser.get(f"{page}/statements/{month}/")
    if role not in LISTS["billing/transfer"]:
        assert answer.status_code == (302 if role == "user" else 403)
        return
    *_, gift = b"".join(answer.streaming_content).decode().splitlines()
    assert gift.split(",")[1:6] == ["welcome", "1000", "0", "1000", "0"]
    assert answer["Content-Disposition"] == f'attachment; filename="statement-{month}.csv"'
    assert links_of(f"{page}/change/", browser)[month] == f"{page}/statements/{month}/"
    refused = browser.get(f"{page}/statements/2024-02/", follow=True)
    assert refused.redirect_chain == [(f"{page}/change/", 302)]
    assert "There is no statement of 2024-02." in refused.content.decode()


def test_statement_of_somebody_who_has_used_nothing_yet_opens_no_accounts(admin, owner):
    browser, page = browser_of(admin), f"/admin/accounts/user/{owner.pk}"
    assert browser.get(f"{page}/change/").status_code == 200
    assert browser.get(f"{page}/statements/2026-11/").status_code == 404
    assert not Transfer.objects.exists()


@pytest.mark.parametrize("role", ["superuser", "Support"])
def test_nobody_writes_to_the_ledger(role, owner, job):
    browser = browser_of(administrator(role))
    transfer = Transfer.objects.earliest("pk")
    for name in ("transfer", "hold"):
        assert browser.get(f"/admin/billing/{name}/add/").status_code == 403
        assert browser.post(f"/admin/billing/{name}/add/", {}).status_code == 403
    page = f"/admin/billing/transfer/{transfer.pk}/change/"
    assert browser.post(page, {"amount_hundredths": 5}).status_code == 403
    assert browser.get(page).status_code == 200
    assert ledger_breaches() == []


def test_prices_are_read_and_given_in_tokens(admin):
    browser = browser_of(admin)
    assert "0.75" in browser.get("/admin/billing/price/").content.decode()
    form = {
        "upload_image": "1",
        "upload_frame": "0.5",
        "inference_image": "2.25",
        "inference_frame": "0",
    }
    assert browser.post("/admin/billing/price/add/", form).status_code == 302
    assert vars(current_prices()) == {
        "upload_image_hundredths": 100,
        "upload_frame_hundredths": 50,
        "inference_image_hundredths": 225,
        "inference_frame_hundredths": 0,
    }
    for bad in ("0.001", "-1", "NaN", ""):
        answer = browser.post("/admin/billing/price/add/", {**form, "upload_image": bad})
        assert answer.status_code == 200, bad
    assert Price.objects.count() == 2
    assert browser_of(make_user(role="Support")).get("/admin/billing/price/add/").status_code == 403


# -- users ---------------------------------------------------------------------------------------


def test_users_are_found_by_address_and_role(admin, owner):
    make_user("carer@example.org", role="Support")
    browser = browser_of(admin)

    def addresses(**query) -> set[str]:
        answer = browser.get("/admin/accounts/user/", query)
        return {user.email for user in answer.context["cl"].result_list}

    assert addresses(q="owner") == {"owner@example.org"}
    assert addresses(is_staff__exact="1") == {"root@example.org", "carer@example.org"}
    support = Group.objects.get(name="Support")
    assert addresses(groups__id__exact=support.pk) == {"carer@example.org"}
    assert addresses(is_active__exact="0") == set()
    page = browser.get("/admin/accounts/user/").content.decode()
    assert "1,000.00" in page


def access_form(**changes) -> dict:
    return {"is_active": "on", **changes}


def test_superuser_gives_a_role(admin, owner):
    support = Group.objects.get(name="Support")
    page = f"/admin/accounts/user/{owner.pk}/change/"
    form = access_form(is_staff="on", groups=[support.pk])
    assert browser_of(admin).post(page, form).status_code == 302
    owner.refresh_from_db()
    assert (owner.is_staff, owner.is_superuser, owner.is_active) == (True, False, True)
    assert list(owner.groups.all()) == [support]
    assert User.objects.get(pk=owner.pk).has_perm("billing.top_up")


def test_user_made_inactive_is_logged_out(admin, owner):
    token = log_in(email=owner.email, password=PASSWORD).access
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    assert client.get("/token").status_code == 200
    page = f"/admin/accounts/user/{owner.pk}/change/"
    assert browser_of(admin).post(page, {}).status_code == 302
    assert client.get("/token").status_code == 401
    assert Session.objects.get(user=owner).revoked_at is not None


@pytest.mark.parametrize("role", ["Support", "Moderators", "none"])
def test_no_other_administrator_gives_rights(role, owner):
    actor = administrator(role)
    browser = browser_of(actor)
    for user in (owner, actor):
        page = f"/admin/accounts/user/{user.pk}/change/"
        form = access_form(is_staff="on", is_superuser="on")
        assert browser.post(page, form).status_code == 403
        user.refresh_from_db()
        assert not user.is_superuser
    assert browser.get("/admin/accounts/user/add/").status_code == 403


def test_superuser_cannot_lock_himself_out(admin):
    page = f"/admin/accounts/user/{admin.pk}/change/"
    assert browser_of(admin).post(page, {}).status_code == 403
    admin.refresh_from_db()
    assert (admin.is_active, admin.is_superuser) == (True, True)


# -- datasets ------------------------------------------------------------------------------------


def test_dataset_shows_tags_size_and_cost(admin, owner, dataset, media_file):
    add_media_file(dataset, name="a.mp4", content=b"x" * 500, media_type="video", frame_count=30)
    Dataset.objects.filter(pk=dataset.pk).update(tags=["bridge", "dawn"])
    for page in ("/admin/datasets/dataset/", f"/admin/datasets/dataset/{dataset.pk}/change/"):
        shown = browser_of(admin).get(page).content.decode()
        assert "bridge, dawn" in shown
        assert "1 image, 30 video frames" in shown
        assert "2.0 kB" in shown
        assert "31.50" in shown


@pytest.mark.parametrize("name", ["accounts/user", "billing/transfer", "datasets/dataset"])
def test_longer_list_asks_the_database_no_more_often(admin, name):
    browser = browser_of(admin)

    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            browser.get(f"/admin/{name}/")
        return len(asked)

    def grow(count: int) -> None:
        for _ in range(count):
            user = make_user()
            balance_hundredths(user=user)
            add_media_file(make_dataset(user))

    grow(2)
    queries()
    few = queries()
    grow(5)
    assert queries() == few


def test_block_stops_the_dataset_and_its_owner_reads_why(owner, dataset, job):
    moderator = make_user("moderator@example.org", role="Moderators")
    browser = browser_of(moderator)
    answer = browser.post(asking_page(dataset, "block"), {"reason": "licence plates"}, follow=True)
    assert "street is blocked: licence plates" in answer.content.decode()
    dataset.refresh_from_db()
    job.refresh_from_db()
    assert dataset.blocked_at is not None
    assert (job.state, job.charged_hundredths) == ("Aborted", 0)
    assert balance_hundredths(user=owner) == 100_000
    action = ModerationAction.objects.get()
    assert (action.kind, action.actor, action.reason) == ("block", moderator, "licence plates")
    page = browser.get(f"/admin/datasets/dataset/{dataset.pk}/change/").content.decode()
    assert "moderator@example.org" in page

    client = APIClient()
    client.force_authenticate(owner)
    shown = client.get(f"/api/v1/datasets/{dataset.pk}/").json()
    assert (shown["is_blocked"], shown["block_reason"]) == (True, "licence plates")
    assert Event.objects.filter(user=owner, kind="dataset.blocked").count() == 1
    assert ledger_breaches() + settlement_breaches() == []


def test_block_without_a_reason_is_asked_again(admin, dataset):
    answer = browser_of(admin).post(asking_page(dataset, "block"), {"reason": " "})
    assert answer.status_code == 200
    dataset.refresh_from_db()
    assert dataset.blocked_at is None


def test_flag_keeps_the_dataset_in_use_and_is_not_told_to_its_owner(admin, owner, dataset, job):
    browser = browser_of(admin)
    browser.post(asking_page(dataset, "flag"), {"reason": "faces?"})
    dataset.refresh_from_db()
    job.refresh_from_db()
    assert (dataset.flagged_at is not None, dataset.blocked_at) == (True, None)
    assert job.state == "Pending"
    assert not Event.objects.filter(user=owner, kind__startswith="dataset.").exists()

    def queue() -> list[Dataset]:
        answer = browser.get("/admin/datasets/dataset/", {"moderation": "flagged"})
        return list(answer.context["cl"].result_list)

    assert queue() == [dataset]
    browser.post(asking_page(dataset, "restore"), {"reason": "statues"})
    assert queue() == []
    assert not Event.objects.filter(user=owner, kind__startswith="dataset.").exists()
    told = ModerationAction.objects.order_by("pk").values_list("kind", "reason")
    assert list(told) == [("flag", "faces?"), ("restore", "statues")]


def test_restored_dataset_takes_jobs_again(admin, owner, dataset, media_file):
    browser = browser_of(admin)
    browser.post(asking_page(dataset, "block"), {"reason": "plates"})
    browser.post(asking_page(dataset, "restore"), {"reason": "they are painted over"})
    dataset.refresh_from_db()
    assert (dataset.blocked_at, dataset.block_reason) == (None, "")
    kinds = Event.objects.filter(user=owner).order_by("seq").values_list("kind", flat=True)
    assert list(kinds) == ["dataset.blocked", "dataset.restored"]
    submission.submit_job(
        user=owner, dataset_id=dataset_id_of(owner), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def test_moderation_that_changes_nothing_is_told_and_not_recorded(admin, dataset):
    browser = browser_of(admin)
    answer = browser.post(asking_page(dataset, "restore"), {"reason": "mistake"})
    assert "is neither blocked nor flagged" in answer.content.decode()
    browser.post(asking_page(dataset, "block"), {"reason": "plates"})
    for name in ("block", "flag"):
        answer = browser.post(asking_page(dataset, name), {"reason": "again"})
        assert "blocked already" in answer.content.decode()
    dataset.refresh_from_db()
    assert dataset.block_reason == "plates"
    assert ModerationAction.objects.count() == 1


def test_buttons_fit_the_state_of_the_dataset(admin, dataset):
    browser = browser_of(admin)

    def buttons() -> set[str]:
        page = browser.get(f"/admin/datasets/dataset/{dataset.pk}/change/").content.decode()
        return {n for n in ("flag", "block", "restore") if asking_page(dataset, n) in page}

    assert buttons() == {"flag", "block"}
    browser.post(asking_page(dataset, "flag"), {"reason": "?"})
    assert buttons() == {"block", "restore"}
    browser.post(asking_page(dataset, "block"), {"reason": "!"})
    assert buttons() == {"restore"}


def test_names_of_users_are_never_markup(admin, owner):
    hostile = "<script>alert(1)</script>"
    dataset = make_dataset(owner, hostile)
    add_media_file(dataset, name=hostile)
    for page in (
        "/admin/datasets/dataset/",
        f"/admin/datasets/dataset/{dataset.pk}/change/",
        "/admin/datasets/mediafile/",
        asking_page(dataset, "block"),
    ):
        shown = browser_of(admin).get(page).content.decode()
        assert hostile not in shown, page
        assert "&lt;script&gt;" in shown, page


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("datasets/dataset", "datasets_mediafile"),
        ("inference/job", "inference_unitfile"),
        ("inference/jobfile", "inference_unitfile"),
    ],
)
def test_list_adds_up_for_the_rows_that_it_shows_and_not_to_count_them(admin, job, name, table):
    with CaptureQueriesContext(connection) as asked:
        browser_of(admin).get(f"/admin/{name}/")
    questions = [one["sql"] for one in asked]
    assert sum(f'FROM "{table}"' in sql for sql in questions) == 1
    assert not any(f'JOIN "{table}"' in sql for sql in questions)


# -- jobs and models -----------------------------------------------------------------------------


def test_abort_ends_the_job_and_its_owner_reads_why(admin, owner, job):
    answer = browser_of(admin).post(asking_page(job, "abort"), {"reason": "maintenance"})
    assert answer.status_code == 302
    job.refresh_from_db()
    assert job.state == "Aborted"
    assert job.error == "Aborted by an administrator: maintenance"
    assert balance_hundredths(user=owner) == 100_000
    assert LogEntry.objects.get().user == admin
    again = browser_of(admin).post(asking_page(job, "abort"), {"reason": "once more"})
    assert f"Job {job.pk} is Aborted already." in again.content.decode()
    job.refresh_from_db()
    assert job.error == "Aborted by an administrator: maintenance"


def test_action_that_cannot_be_recorded_does_not_happen(admin, owner, job, monkeypatch):
    def refuse(*args: object) -> None:
        raise DatabaseError("no room for a record")

    monkeypatch.setattr(ModelAdmin, "log_change", refuse)
    browser = browser_of(admin)
    browser.raise_request_exception = False
    assert browser.post(asking_page(job, "abort"), {"reason": "x"}).status_code == 500
    top_up = {"amount": "5", "reason": "x", "key": "k"}
    assert browser.post(asking_page(owner, "top-up"), top_up).status_code == 500
    job.refresh_from_db()
    assert job.state == "Pending"
    assert [event.kind for event in Event.objects.filter(user=owner)] == ["job.submitted"]
    assert not Transfer.objects.filter(kind__in=("top_up", "release")).exists()
    assert not LogEntry.objects.exists()


def test_run_again_is_a_new_job_that_its_owner_pays(admin, owner, dataset, job):
    end(job)
    add_media_file(dataset, name="later.jpg")
    answer = browser_of(admin).post(asking_page(job, "run-again"), {"reason": "our fault"})
    assert answer.status_code == 302
    again = Job.objects.latest("pk")
    assert (again.rerun_of, again.user, again.state) == (job, owner, "Pending")
    assert again.model_version == job.model_version
    # The files of the job, not the one that was added later.
    assert [file.media_file.name for file in again.files.all()] == ["street.jpg"]
    assert balance_hundredths(user=owner) == 100_000 - 150
    job.refresh_from_db()
    assert job.state == "Aborted"
    assert ledger_breaches() + settlement_breaches() == []


def test_job_runs_again_once_at_a_time(admin, job):
    browser = browser_of(admin)
    answer = browser.post(asking_page(job, "run-again"), {"reason": "hurry"})
    assert f"Job {job.pk} has not ended yet." in answer.content.decode()
    end(job)
    for _ in range(2):
        answer = browser.post(asking_page(job, "run-again"), {"reason": "our fault"})
    assert f"is running job {job.pk} again already." in answer.content.decode()
    assert Job.objects.count() == 2


def test_run_again_that_cannot_be_is_refused_and_costs_nothing(admin, owner, dataset, job):
    end(job)
    browser = browser_of(admin)

    def refusal() -> str:
        return browser.post(asking_page(job, "run-again"), {"reason": "try"}).content.decode()

    Price.objects.create(
        upload_image_hundredths=0,
        upload_frame_hundredths=0,
        inference_image_hundredths=100_001,
        inference_frame_hundredths=0,
    )
    assert "1000.01 tokens are needed, the balance is 1000." in refusal()
    browser.post(asking_page(dataset, "block"), {"reason": "plates"})
    assert "is blocked: plates" in refusal()
    Dataset.objects.filter(pk=dataset.pk).update(deleted_at=job.created_at)
    assert "The dataset was deleted by its owner." in refusal()
    ModelVersion.objects.filter(pk=job.model_version_id).update(state="retired")
    assert "There is no model YOLO8/YOLO8s_FSR" in refusal()
    assert Job.objects.count() == 1
    assert balance_hundredths(user=owner) == 100_000


def test_job_page_leads_to_its_files_and_its_money(admin, job):
    page = browser_of(admin).get(f"/admin/inference/job/{job.pk}/change/").content.decode()
    for link in (
        f"/admin/inference/jobfile/?job={job.pk}",
        f"/admin/inference/workunit/?job={job.pk}",
        f"/admin/billing/transfer/?job_id={job.pk}",
    ):
        assert link in page
        answer = browser_of(admin).get(link)
        assert answer.status_code == 200
        assert answer.context["cl"].result_count == 1


# -- model versions ------------------------------------------------------------------------------


MODELS = "/admin/inference/modelversion/"
UPLOADED = b"weights of a boat finder"


@pytest.fixture
def believed(monkeypatch) -> None:
    """No process is started: every upload is a sound model (test_registry has the real one)."""
    facts = WeightsFacts("pt", ("car", "boat"), None, 1000)
    monkeypatch.setattr(registry, "read_facts", lambda path, limits: facts)
    monkeypatch.setattr(queue, "send_model_test", lambda version_id: True)


def upload_fields(**changes) -> dict:
    content = SimpleUploadedFile("boats.pt", UPLOADED)
    fields = {"file": content, "version": "boats-1", "model_id": "YOLO8", "notes": "boats"}
    return {**fields, "default_options": '{"image_size": 1024}', **changes}


@pytest.fixture
def draft(admin, believed) -> ModelVersion:
    answer = browser_of(admin).post(f"{MODELS}add/", upload_fields())
    version = ModelVersion.objects.get(version="boats-1")
    assert (answer.status_code, answer["Location"]) == (302, f"{MODELS}{version.pk}/change/")
    return version


def test_upload_makes_a_draft_that_waits_for_its_test_run(admin, draft):
    assert (draft.state, draft.uploaded_by, draft.notes) == ("draft", admin, "boats")
    assert draft.default_options == {"image_size": 1024}
    assert draft.test_requested_at is not None
    page = browser_of(admin).get(f"{MODELS}{draft.pk}/change/").content.decode()
    assert "waits for a worker" in page
    assert draft.weights_sha256 in page
    assert "Offer to users" not in page
    assert LogEntry.objects.get().object_id == str(draft.pk)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "YOLO8s_FSR"}, "other weights need another name"),
        ({"version": "a b"}, "Letters, digits, dots"),
        ({"default_options": '{"image_size": 7}'}, "must be a multiple of 32"),
        ({"default_options": "[1]"}, "must be an object"),
        ({"default_options": "{"}, "valid JSON"),
        ({"default_options": "[" * 20_000}, "valid JSON"),
        ({"default_options": "[" * 900 + "]" * 900}, "valid JSON"),
        ({"file": SimpleUploadedFile("a.pt", b"")}, "submitted file is empty"),
    ],
)
def test_upload_that_makes_no_sense_is_answered_on_the_page(admin, believed, changes, reason):
    answer = browser_of(admin).post(f"{MODELS}add/", upload_fields(**changes))
    assert answer.status_code == 200
    assert reason in answer.content.decode()
    assert ModelVersion.objects.count() == 2
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("role", ["Support", "Moderators", "none", "user"])
def test_nobody_else_uploads_offers_or_retires(role, draft, media_root):
    LogEntry.objects.all().delete()
    files = list((media_root / "models").iterdir())
    browser = browser_of(administrator(role))
    refused = 302 if role == "user" else 403
    assert browser.get(f"{MODELS}add/").status_code == refused
    assert browser.post(f"{MODELS}add/", upload_fields(version="x")).status_code == refused
    for name in ("activate", "retire", "test"):
        assert browser.post(f"{MODELS}{draft.pk}/{name}/").status_code == refused
    assert browser.post(f"{MODELS}{draft.pk}/change/", {"notes": "x"}).status_code == refused
    picture = browser.get(f"{MODELS}{draft.pk}/picture/")
    assert picture.status_code == (404 if role == "Support" else refused)  # there is none yet
    draft.refresh_from_db()
    assert (draft.state, draft.notes) == ("draft", "boats")
    assert list((media_root / "models").iterdir()) == files
    assert not LogEntry.objects.exists()


def test_tested_version_is_offered_and_retired_without_a_restart(admin, owner, media_file, draft):
    browser = browser_of(admin)
    page = f"{MODELS}{draft.pk}/"
    answer = browser.post(f"{page}activate/")
    assert "boats-1 is draft" in answer.content.decode()
    figures = {"found": 28, "vehicles": 30, "false": 1, "by_class": {"car": 29}}
    ModelVersion.objects.filter(pk=draft.pk).update(
        state="tested",
        test_requested_at=None,
        test_figures={**figures, "milliseconds_per_picture": 40},
        test_picture=default_storage.save("model-tests/a.jpg", ContentFile(jpeg())),
    )
    shown = browser.get(f"{page}change/").content.decode()
    assert "found 28 of 30 vehicles, 1 false (29 car), 40 ms a picture" in shown
    assert f'src="{page}picture/"' in shown
    picture = browser_of(make_user(role="Support")).get(f"{page}picture/")
    assert (picture.content, picture["Content-Type"]) == (jpeg(), "image/jpeg")
    assert browser.post(f"{page}activate/").status_code == 302
    job = submission.submit_job(
        user=owner, dataset_id=dataset_id_of(owner), model_id="YOLO8", model_version="boats-1"
    )
    assert browser.post(f"{page}retire/").status_code == 302
    with pytest.raises(registry.UnknownModelError):
        submission.submit_job(
            user=owner, dataset_id=dataset_id_of(owner), model_id="YOLO8", model_version="boats-1"
        )
    job.refresh_from_db()
    assert (job.state, job.weights_sha256) == ("Pending", draft.weights_sha256)
    told = [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]
    assert told[1:] == ["boats-1 is offered to users.", "boats-1 is retired."]


def test_notes_and_defaults_of_a_version_may_change_and_nothing_else(admin):
    version = ModelVersion.objects.get(version="YOLO8m_FSR")
    page = f"{MODELS}{version.pk}/change/"
    changes = {"notes": "slow today", "default_options": '{"tiling": "auto"}'}
    answer = browser_of(admin).post(page, {**changes, "state": "draft", "weights_sha256": "0"})
    assert answer.status_code == 302
    changed = ModelVersion.objects.get(pk=version.pk)
    assert (changed.notes, changed.default_options) == ("slow today", {"tiling": "auto"})
    assert (changed.state, changed.weights_sha256) == ("active", version.weights_sha256)
    answer = browser_of(admin).post(page, {**changes, "default_options": '{"tracking": true}'})
    assert "tracking is a matter of each job" in answer.content.decode()
    for nested in ("[" * 20_000, "[" * 900 + "]" * 900):
        answer = browser_of(admin).post(page, {**changes, "default_options": nested})
        assert (answer.status_code, "valid JSON" in answer.content.decode()) == (200, True)
    assert ModelVersion.objects.get(pk=version.pk).default_options == {"tiling": "auto"}


# -- the looks -----------------------------------------------------------------------------------


def test_pages_name_no_other_host(admin, job):
    browser = browser_of(admin)
    for page in ("/admin/", "/admin/inference/job/", f"/admin/inference/job/{job.pk}/change/"):
        shown = browser.get(page).content.decode()
        assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]+"', shown), page


def test_every_list_of_the_admin_is_opened_in_a_browser():
    models = [model._meta for model in site._registry]
    lists = {reverse(f"admin:{one.app_label}_{one.model_name}_changelist") for one in models}
    assert lists <= set(admin_pages.LISTS)


@pytest.mark.parametrize(
    ("page", "status", "sentence"),
    [
        ("/admin/nothing/", 404, "There is nothing at this address."),
        ("/admin/billing/transfer/add/", 403, "This page is not offered to you."),
    ],
)
def test_refusal_is_a_page_for_an_administrator_and_a_problem_for_a_program(
    admin, page, status, sentence
):
    browser = browser_of(admin)
    shown = browser.get(page, HTTP_ACCEPT="text/html,*/*;q=0.8")
    assert (shown.status_code, shown["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert sentence in shown.content.decode()
    assert "/admin/logout/" in shown.content.decode()
    asked = browser.get(page, HTTP_ACCEPT="application/json")
    assert (asked.status_code, asked["Content-Type"]) == (status, "application/problem+json")


def links_of(page: str, browser: Client) -> dict[str, str]:
    """Where the links of a page lead that are among its facts, by their text."""
    shown = browser.get(page).content.decode()
    return {
        unescape(text): unescape(href)
        for href, text in re.findall(r'<a class="text-link" href="([^"]+)">([^<]+)</a>', shown)
    }


def is_answered(page: str, browser: Client) -> bool:
    """Whether there is such a page, or a file, for who asks."""
    answer = browser.get(page)
    if answer.streaming:
        b"".join(answer.streaming_content)  # which closes the file
    return answer.status_code == 200


def test_pages_lead_from_users_to_what_they_have_and_back(admin, job):
    browser, user = browser_of(admin), job.user
    transfer = Transfer.objects.get(job_id=job.pk)
    pages = {
        "user": f"/admin/accounts/user/{user.pk}/change/",
        "dataset": f"/admin/datasets/dataset/{job.dataset_id}/change/",
        "job": f"/admin/inference/job/{job.pk}/change/",
        "transfer": f"/admin/billing/transfer/{transfer.pk}/change/",
    }
    links = {name: links_of(page, browser) for name, page in pages.items()}
    jobs, datasets = "/admin/inference/job/", "/admin/datasets/dataset/"
    assert links["user"][f"Jobs of {user.email}"] == f"{jobs}?user={user.pk}"
    assert links["user"][f"Datasets of {user.email}"] == f"{datasets}?user={user.pk}"
    assert links["dataset"][f"Jobs on {job.dataset.name}"] == f"{jobs}?dataset={job.dataset_id}"
    assert links["job"][job.dataset.name] == pages["dataset"]
    assert links["transfer"][f"job {job.pk}"] == pages["job"]
    for name in ("dataset", "job", "transfer"):
        assert links[name][user.email] == pages["user"]
    for page in {href for found in links.values() for href in found.values()}:
        assert is_answered(page, browser), page
    other = make_user(f"jo{user.email}")  # whose address holds the user's
    ledger.open_accounts(user=other)
    movements = browser.get(links["user"][f"Movements of {user.email}"]).context["cl"]
    assert {one.user_email for one in movements.result_list} == {user.email}


def test_links_are_for_those_who_may_follow_them(job):
    clerk = make_user(role="Support")
    clerk.groups.clear()
    clerk.user_permissions.set(
        Permission.objects.filter(codename__in=["view_transfer", "view_job"])
    )
    transfer = Transfer.objects.get(job_id=job.pk)
    links = links_of(f"/admin/billing/transfer/{transfer.pk}/change/", browser_of(clerk))
    assert links == {f"job {job.pk}": f"/admin/inference/job/{job.pk}/change/"}
    assert job.dataset.name not in links_of(links[f"job {job.pk}"], browser_of(clerk))


@pytest.mark.parametrize("role", ["Support", "Moderators"])
def test_links_lead_nobody_to_a_page_that_is_not_theirs(role, job):
    browser = browser_of(administrator(role))
    pages = [f"/admin/datasets/dataset/{job.dataset_id}/change/"]
    if role == "Support":
        transfer = Transfer.objects.get(job_id=job.pk)
        pages += [
            f"/admin/accounts/user/{job.user_id}/change/",
            f"/admin/inference/job/{job.pk}/change/",
            f"/admin/billing/transfer/{transfer.pk}/change/",
        ]
    links = {href for page in pages for href in links_of(page, browser).values()}
    assert links
    for page in links:
        assert is_answered(page, browser), page


@pytest.mark.parametrize("lookup", ["password", "password__startswith", "password__regex"])
def test_nobody_asks_about_the_hash_of_a_password(lookup):
    """Letter by letter the answers would tell it."""
    boss = administrator("superuser")
    spy = Client()
    spy.force_login(administrator("Support"))
    answer = spy.get("/admin/accounts/user/", {lookup: boss.password[:20]})
    assert answer.status_code == 400
    assert spy.get("/admin/accounts/user/", {"email": boss.email}).status_code == 200


# -- webhooks ------------------------------------------------------------------------------------


def test_webhook_that_is_switched_off_tells_its_owner_why(owner, webhook):
    browser = browser_of(administrator("Support"))
    page = f"/admin/accounts/webhook/{webhook.pk}/change/"
    assert "Switch the webhook off" in browser.get(page).content.decode()
    answer = browser.post(asking_page(webhook, "switch-off"), {"reason": "It floods its receiver."})
    assert (answer.status_code, answer["Location"]) == (302, page)
    told = client_of(owner).get(f"/api/v1/webhooks/{webhook.pk}/").json()
    assert (told["active"], told["off_reason"]) == (False, "It floods its receiver.")
    assert LogEntry.objects.get().get_change_message() == (
        "The webhook was switched off: It floods its receiver."
    )
    assert "Switch the webhook off" not in browser.get(page).content.decode()
    again = browser.post(asking_page(webhook, "switch-off"), {"reason": "again"})
    assert "is switched off already" in again.content.decode()
    row = Webhook.objects.get()
    assert row.off_reason == "It floods its receiver."
    assert row.off_by.groups.get().name == "Support"


def test_administrator_switches_on_what_an_administrator_has_switched_off(owner, webhook):
    switch_off_webhook(actor=administrator("superuser"), webhook=webhook, reason="It floods.")
    browser = browser_of(administrator("Support"))
    page = f"/admin/accounts/webhook/{webhook.pk}/change/"
    shown = browser.get(page).content.decode()
    assert "Switch the webhook on again" in shown
    assert Webhook.objects.get().off_by.email in shown
    answer = browser.post(asking_page(webhook, "switch-on"))
    assert (answer.status_code, answer["Location"]) == (302, page)
    row = Webhook.objects.get()
    assert (row.off_since, row.off_reason, row.off_by) == (None, "", None)
    assert LogEntry.objects.get().get_change_message() == "The webhook was switched on again."
    again = browser.post(asking_page(webhook, "switch-on"))
    assert "No administrator has switched the webhook" in again.content.decode()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example.org/services/T0/secret", "https://hooks.example.org/service…"),
        ("https://hooks.example.org:8443/in?key=secret", "https://hooks.example.org:8443/in…"),
        ("https://hooks.example.org/hook", "https://hooks.example.org/hook"),
        ("https://hooks.example.org?secret", "https://hooks.example.org…"),
    ],
)
def test_support_sees_the_beginning_of_an_address_only(webhook, url, shown):
    Webhook.objects.update(url=url)
    support, superuser = (
        browser_of(administrator("Support")),
        browser_of(administrator("superuser")),
    )
    for page in ("", f"{webhook.pk}/change/", f"{webhook.pk}/switch-off/"):
        told = support.get(f"/admin/accounts/webhook/{page}").content.decode()
        assert shown in told, page
        assert "secret" not in told, page
    for page in ("", f"{webhook.pk}/change/"):
        assert url in superuser.get(f"/admin/accounts/webhook/{page}").content.decode()


def test_support_cannot_guess_an_address_letter_by_letter(webhook):
    support, superuser = (
        browser_of(administrator("Support")),
        browser_of(administrator("superuser")),
    )
    page = f"/admin/accounts/webhook/{webhook.pk}/change/"
    searched = "/admin/accounts/webhook/?q=8.8.8.8/ho"
    assert page not in support.get(searched).content.decode()
    assert page in superuser.get(searched).content.decode()
    asked = {"url__startswith": "https://8.8.8.8/h"}
    assert support.get("/admin/accounts/webhook/", asked).status_code == 400
    for place in ("accounts/user/?webhooks", "billing/hold/?user__webhooks"):
        assert support.get(f"/admin/{place}__url__startswith=https").status_code == 400, place
    assert page in support.get(f"/admin/accounts/webhook/?q={webhook.user}").content.decode()


def test_secret_of_a_webhook_is_neither_shown_nor_guessed(admin, webhook):
    rotate_secret(webhook=webhook)
    row = Webhook.objects.get()
    browser = browser_of(admin)
    pages = ("", f"{webhook.pk}/change/", f"{webhook.pk}/history/", f"{webhook.pk}/switch-off/")
    for page in pages:
        shown = browser.get(f"/admin/accounts/webhook/{page}").content.decode()
        assert row.secret not in shown
        assert row.former_secret not in shown
    assert webhook.url in browser.get("/admin/accounts/webhook/").content.decode()
    for lookup in ("secret", "secret__startswith", "former_secret__regex"):
        answer = browser.get("/admin/accounts/webhook/", {lookup: row.secret[:9]})
        assert answer.status_code == 400, lookup
    for place in ("accounts/user/?webhooks__secret", "billing/hold/?user__webhooks__secret"):
        assert browser.get(f"/admin/{place}__startswith=whsec_").status_code == 400, place


@pytest.mark.parametrize(
    "address",
    [
        "billing/transfer/?kind__exact=top_up%00",
        "billing/transfer/?created_at__year=99999999999999999999",
    ],
)
def test_filter_that_can_be_no_value_of_its_column_shows_the_whole_list(admin, job, address):
    answer = browser_of(admin).get(f"/admin/{address}")
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/{address.split('?')[0]}?e=1")
    assert browser_of(admin).get(answer["Location"]).context["cl"].result_count > 0


def test_new_password_of_an_administrator_ends_all_sessions_of_the_api():
    boss, other = administrator("superuser"), make_user()
    stolen = log_in(email=boss.email, password=PASSWORD)
    kept = log_in(email=other.email, password=PASSWORD)
    browser = Client()
    browser.force_login(boss)
    new = "another-horse-77"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert browser.post("/admin/password_change/", form).status_code == 302
    api = APIClient()
    for tokens, status in ((stolen, 401), (kept, 200)):
        seen = api.get("/api/v1/me/", HTTP_AUTHORIZATION=f"Bearer {tokens.access}")
        assert seen.status_code == status
    refreshed = api.post("/api/v1/tokens/refresh/", {"refresh": stolen.refresh})
    assert refreshed.status_code == 401
    assert log_in(email=boss.email, password=new)
    assert browser.get("/admin/").status_code == 200

"""The menu beside the admin's pages (django-unfold): what the administrator's role can read."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from datasets.selectors import flagged_dataset_count

# Group -> (name, list of the admin, filter, permission, icon)
GROUPS = {
    "People": (
        ("Users", "accounts_user", "", "accounts.view_user", "group"),
        ("API keys", "accounts_apikey", "", "accounts.view_apikey", "key"),
        ("Webhooks", "accounts_webhook", "", "accounts.view_webhook", "webhook"),
    ),
    "Money": (
        ("Ledger", "billing_transfer", "", "billing.view_transfer", "receipt_long"),
        ("Holds", "billing_hold", "", "billing.view_hold", "lock_clock"),
        ("Price lists", "billing_price", "", "billing.view_price", "sell"),
    ),
    "Datasets": (
        ("Datasets", "datasets_dataset", "", "datasets.view_dataset", "photo_library"),
        (
            "To be looked at",
            "datasets_dataset",
            "?moderation=flagged",
            "datasets.moderate_dataset",
            "flag",
        ),
    ),
    "Detection": (
        ("Jobs", "inference_job", "", "inference.view_job", "checklist"),
        (
            "Model versions",
            "inference_modelversion",
            "",
            "inference.view_modelversion",
            "deployed_code",
        ),
        ("Workers", "inference_workerheartbeat", "", "inference.view_workerheartbeat", "memory"),
    ),
    "Administrators": (("Groups", "auth_group", "", "auth.change_group", "badge"),),
}


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Groups of links, without what the administrator may not read."""
    menu = []
    for title, links in GROUPS.items():
        items = [_item(request, *link) for link in links if request.user.has_perm(link[3])]
        if items:
            menu.append({"title": title, "items": items})
    return menu


def _item(
    request: HttpRequest, title: str, name: str, query: str, _permission: str, icon: str
) -> dict[str, Any]:
    address = reverse(f"admin:{name}_changelist")
    here = request.path.startswith(address)
    is_filtered = request.path == address and "moderation=flagged" in request.GET.urlencode()
    item: dict[str, Any] = {
        "title": title,
        "link": address + query,
        "icon": icon,
        "active": here and bool(query) == is_filtered,
    }
    if query and (count := flagged_dataset_count()):
        item["badge"] = str(count)
    return item

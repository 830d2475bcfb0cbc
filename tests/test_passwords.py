"""Passwords are kept by Argon2id, in little memory; older hashes are made anew."""

import io
import re

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.management.commands import changepassword
from django.core.management import call_command

from accounts.models import Session, User
from accounts.services import log_in
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.django_db
FRUGAL = re.compile(r"argon2\$argon2id\$v=19\$m=19456,t=2,p=1\$")
HASHERS = list(django_settings.PASSWORD_HASHERS)


@pytest.fixture(autouse=True)
def real_hashers(quick_passwords, settings):
    settings.PASSWORD_HASHERS = HASHERS


def test_hash_takes_19_mebibytes_and_no_second_thread():
    assert FRUGAL.match(make_user().password)


@pytest.mark.parametrize(
    "old",
    [
        "django.contrib.auth.hashers.Argon2PasswordHasher",
        "django.contrib.auth.hashers.PBKDF2PasswordHasher",
    ],
)
def test_older_hash_is_made_anew_at_the_next_log_in_which_ends_no_session(settings, old):
    user = make_user()
    before = log_in(email=user.email, password=PASSWORD)
    settings.PASSWORD_HASHERS = [old, *HASHERS]
    User.objects.filter(pk=user.pk).update(password=make_password(PASSWORD))
    settings.PASSWORD_HASHERS = HASHERS
    assert log_in(email=user.email, password=PASSWORD).refresh != before.refresh
    user.refresh_from_db()
    assert FRUGAL.match(user.password)
    assert Session.objects.filter(user=user, revoked_at=None).count() == 2


def test_operator_who_changes_a_password_logs_its_user_out(monkeypatch):
    user, other = make_user(), make_user()
    for one in (user, other):
        log_in(email=one.email, password=PASSWORD)
    asked = iter(["another-horse-77"] * 2)
    monkeypatch.setattr(changepassword.Command, "_get_pass", lambda self, *prompt: next(asked))
    call_command("changepassword", user.email, stdout=io.StringIO())
    assert log_in(email=user.email, password="another-horse-77")
    living = Session.objects.filter(revoked_at=None).order_by("pk")
    assert list(living.values_list("user", flat=True)) == [other.pk, user.pk]

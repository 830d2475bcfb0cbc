"""How passwords are kept: by Argon2id, in little memory; older hashes are made anew."""

import re

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.hashers import make_password

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

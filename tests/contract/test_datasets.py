"""GET, POST, DELETE and PATCH /datasets/."""

import json

import pytest

from tests.contract.client import EVERY_WAY, Way, assert_problem

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def shopper(anonymous):
    """A user whose list of datasets is empty between tests."""
    return anonymous.new_customer()


@EVERY_WAY
def test_dataset_is_created_listed_changed_and_deleted(shopper, way):
    keys = {"datasetName": "north gate", "tags": "cars, rain ,dusk"}
    created = shopper.call("POST", "/datasets/", keys, way)
    assert created.status_code == 201
    body = created.json()
    assert body["message"] == "Dataset created successfully"
    made = body["dataset"]
    assert set(made) == {"dataset_id", "file_path", "dataset_name", "tags"}
    assert made["dataset_name"] == "north gate"
    assert made["tags"] == ["cars", "rain", "dusk"]

    listed = shopper.call("GET", "/datasets/", {}, way)
    assert listed.status_code == 200
    assert listed.json() == [
        {
            "dataset": {
                "dataset_id": made["dataset_id"],
                "file_path": made["file_path"],
                "dataset_name": "north gate",
                "token_cost": 0.0,
                "dataset_tags": ["cars", "rain", "dusk"],
            }
        }
    ]

    keys = {"datasetName": "north gate", "newDatasetName": "south gate", "newTags": "snow"}
    changed = shopper.call("PATCH", "/datasets/", keys, way)
    assert changed.status_code == 200
    assert changed.json() == {"message": "Name and Tags correctly updated"}

    deleted = shopper.call("DELETE", "/datasets/", {"datasetName": "south gate"}, way)
    assert deleted.status_code == 200
    assert deleted.json() == {"message": "Dataset deleted successfully"}
    assert shopper.datasets() == {}


@EVERY_WAY
def test_name_or_tags_alone_can_be_changed(customer, way):
    name = customer.new_dataset(tags="old")
    keys = {"datasetName": name, "newTags": "a,b"}
    assert customer.call("PATCH", "/datasets/", keys, way).json() == {
        "message": "Tags correctly updated"
    }
    assert customer.datasets()[name]["dataset_tags"] == ["a", "b"]
    keys = {"datasetName": name, "newDatasetName": name + " new"}
    assert customer.call("PATCH", "/datasets/", keys, way).json() == {
        "message": "Name correctly updated"
    }
    assert customer.datasets()[name + " new"]["dataset_tags"] == ["a", "b"]
    assert name not in customer.datasets()


def test_file_path_is_opaque(customer, service):
    name = customer.new_dataset()
    path = customer.datasets()[name]["file_path"]
    assert isinstance(path, str)
    assert not path.startswith("/")
    assert str(service.data_dir) not in path


def test_types_of_the_list_are_those_of_the_contract(customer):
    name = customer.new_dataset()
    listed = customer.datasets()[name]
    assert type(listed["dataset_id"]) is int
    assert type(listed["token_cost"]) is float


@pytest.mark.parametrize(
    "name",
    [
        "abc",
        "n" * 40,
        "😀" * 40,
        "Straße 7",
        "a/b",
        "../..",
        "'; DROP TABLE",
        "日本語",
        'quo"ted\\',
        "%00%0d%0a",
        "<b>bold</b>",
        "\u202egnol",
    ],
)
def test_name_of_3_to_40_characters_is_taken_word_for_word(customer, name):
    assert customer.new_dataset(name) == name
    assert list(customer.datasets())[-1] == name
    assert customer.call("DELETE", "/datasets", {"datasetName": name}).status_code == 200


@pytest.mark.parametrize(
    "name", ["", "ab", "n" * 41, "\N{GRINNING FACE}" * 2, "\N{GRINNING FACE}" * 41, "   ", " ab "]
)
def test_name_of_another_length_is_400_and_makes_nothing(customer, name):
    before = customer.datasets()
    problem = assert_problem(customer.call("POST", "/datasets", {"datasetName": name}), 400)
    assert problem["errors"][0]["field"] == "datasetName"
    existing = customer.new_dataset()
    keys = {"datasetName": existing, "newDatasetName": name}
    assert_problem(customer.call("PATCH", "/datasets", keys), 400)
    customer.call("DELETE", "/datasets", {"datasetName": existing})
    assert customer.datasets() == before


@pytest.mark.parametrize("value", [True, None, ["abc"], {"a": 1}, "a\0bc", "abc\ud800"], ids=ascii)
@pytest.mark.parametrize("key", ["datasetName", "tags"])
def test_value_that_is_no_text_is_400(customer, key, value):
    keys = {"datasetName": "will not be", "tags": "a", key: value}
    assert_problem(customer.call("POST", "/datasets", keys), 400)
    assert "will not be" not in customer.datasets()


@pytest.mark.parametrize(
    ("tags", "parsed"),
    [
        ("", []),
        (",, ,", []),
        ("one", ["one"]),
        (" b , a,b ,, a", ["b", "a"]),
        ("two words,\N{SNOWMAN}", ["two words", "\N{SNOWMAN}"]),
    ],
)
def test_tags_are_words_between_commas(customer, tags, parsed):
    name = customer.new_dataset(tags=tags)
    assert customer.datasets()[name]["dataset_tags"] == parsed


def test_tags_may_be_left_out(customer):
    answer = customer.call("POST", "/datasets", {"datasetName": "no tags at all"})
    assert answer.json()["dataset"]["tags"] == []


def test_tags_can_be_emptied(customer):
    name = customer.new_dataset(tags="a,b")
    keys = {"datasetName": name, "newTags": ""}
    assert customer.call("PATCH", "/datasets", keys, Way("form")).json() == {
        "message": "Tags correctly updated"
    }
    assert customer.datasets()[name]["dataset_tags"] == []


def test_second_dataset_of_a_name_is_409(customer):
    name = customer.new_dataset(tags="first")
    again = customer.call("POST", "/datasets", {"datasetName": name, "tags": "second"})
    assert_problem(again, 409, "DatasetNameTakenError")
    assert customer.datasets()[name]["dataset_tags"] == ["first"]


def test_two_users_may_use_one_name(customer, outsider):
    name = customer.new_dataset(tags="mine")
    outsider.new_dataset(name, tags="theirs")
    assert customer.datasets()[name]["dataset_tags"] == ["mine"]


def test_name_of_a_deleted_dataset_is_free_again(customer):
    name = customer.new_dataset()
    first = customer.datasets()[name]["dataset_id"]
    customer.call("DELETE", "/datasets", {"datasetName": name})
    customer.new_dataset(name)
    assert customer.datasets()[name]["dataset_id"] != first


def test_rename_to_a_taken_name_is_409_and_changes_nothing(customer):
    taken, name = customer.new_dataset(tags="a"), customer.new_dataset(tags="b")
    keys = {"datasetName": name, "newDatasetName": taken, "newTags": "c"}
    assert_problem(customer.call("PATCH", "/datasets", keys), 409)
    assert customer.datasets()[name]["dataset_tags"] == ["b"]
    assert customer.datasets()[taken]["dataset_tags"] == ["a"]


def test_rename_to_its_own_name_is_no_conflict(customer):
    name = customer.new_dataset()
    keys = {"datasetName": name, "newDatasetName": name}
    assert customer.call("PATCH", "/datasets", keys).status_code == 200


@EVERY_WAY
def test_change_without_a_new_key_is_400(customer, way):
    name = customer.new_dataset()
    assert_problem(customer.call("PATCH", "/datasets", {"datasetName": name}, way), 400)


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
def test_unknown_dataset_is_404(customer, method):
    keys = {"datasetName": "never made", "newTags": "x"}
    assert_problem(customer.call(method, "/datasets", keys), 404, "DatasetNotFoundError")


def test_deleted_dataset_is_gone(customer):
    name = customer.new_dataset()
    customer.call("DELETE", "/datasets", {"datasetName": name})
    again = customer.call("DELETE", "/datasets", {"datasetName": name})
    assert_problem(again, 404)


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
def test_dataset_of_somebody_else_is_404_and_stays(customer, outsider, method):
    name = customer.new_dataset(tags="mine")
    keys = {"datasetName": name, "newTags": "stolen"}
    assert_problem(outsider.call(method, "/datasets", keys), 404)
    assert customer.datasets()[name]["dataset_tags"] == ["mine"]


def test_keys_of_a_delete_work_in_the_query_too(customer):
    name = customer.new_dataset()
    assert customer.send("DELETE", "/datasets", params={"datasetName": name}).status_code == 200
    assert name not in customer.datasets()


def test_extra_keys_are_ignored(customer, outsider):
    keys = {"datasetName": "extra keys", "user": 1, "id": 1, "deleted_at": "now", "format": "xml"}
    assert customer.call("POST", "/datasets", keys).status_code == 201
    assert "extra keys" not in outsider.datasets()
    assert "extra keys" in customer.datasets()


def test_non_ascii_name_travels_unescaped_or_escaped(customer):
    customer.new_dataset("Kölner Ring")
    text = customer.send("GET", "/datasets").content
    assert "Kölner Ring" in {e["dataset"]["dataset_name"] for e in json.loads(text)}

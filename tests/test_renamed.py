"""Old names work, and a warning names the new one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from freqformer._renamed import (
    moved_names,
    renamed_arguments,
    renamed_fields,
    renamed_keys,
)


def test_an_argument_by_its_old_name_is_passed_on():
    @renamed_arguments(colour="color")
    def paint(what: str, color: str | None = None) -> tuple[str, str | None]:
        return what, color

    with pytest.warns(FutureWarning, match=r"^colour is now color; the old name works"):
        assert paint("door", colour="red") == ("door", "red")
    assert paint("door", color="red") == ("door", "red")
    with pytest.raises(ValueError, match="colour is 'red' and color 'blue'; one of them"):
        paint("door", colour="red", color="blue")


def test_a_record_is_made_by_old_names_of_its_fields():
    @renamed_fields(old="new")
    @dataclass(frozen=True)
    class Record:
        new: int = 0

    with pytest.warns(FutureWarning, match="old is now new"):
        assert Record(old=3) == Record(new=3)  # type: ignore[call-arg]


def test_keys_of_a_file_are_renamed_in_their_place():
    values = {"first": 1, "old": 2, "last": 3}
    with pytest.warns(FutureWarning, match=r"run\.old is now run\.new"):
        made = renamed_keys(values, {"old": "new"}, "run.")
    assert list(made.items()) == [("first", 1), ("new", 2), ("last", 3)]
    assert renamed_keys(made, {"old": "new"}, "run.") == made
    with pytest.raises(ValueError, match=r"run\.old and run\.new are both there; .* remove it"):
        renamed_keys({"old": 1, "new": 2}, {"old": "new"}, "run.")


def test_names_that_moved_are_found_where_they_are():
    find = moved_names("here", {"Old": "freqformer.grid.Grid"})
    from freqformer.grid import Grid

    with pytest.warns(FutureWarning, match=r"here\.Old is now freqformer\.grid\.Grid"):
        assert find("Old") is Grid
    with pytest.raises(AttributeError, match="module 'here' has no attribute 'New'"):
        find("New")

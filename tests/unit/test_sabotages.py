"""The sabotages of `make faults-selftest` still fit the tree, and what they make of it is still Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.sabotages import SABOTAGES, Edit, NoLongerFits, Sabotage
from tests.faults.selftest import SERVES, failure_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda one: one.name)
def test_each_replacement_stands_once_in_its_file(sabotage: Sabotage) -> None:
    for path, text in sabotage.changed(ROOT).items():
        assert text != (ROOT / path).read_text("utf-8")
        if path.endswith(".py"):
            compile(text, path, "exec")
    for test in (SERVES, *sabotage.tests):
        file, *names = test.split("[")[0].split("::")
        code = (ROOT / file).read_text("utf-8")
        assert [name for name in names if f" {name}(" not in code and f" {name}:" not in code] == []


@pytest.mark.parametrize("count", [0, 2])
def test_what_stands_there_no_more_or_twice_is_told(tmp_path: Path, count: int) -> None:
    sabotage = Sabotage("blunt", (Edit("knife", "sharp", "blunt"),), ())
    (tmp_path / "knife").write_text("sharp " * count)
    with pytest.raises(NoLongerFits, match=f"'blunt' no longer fits: 'sharp' stands {count} times in knife"):
        sabotage.changed(tmp_path)


def test_only_an_assertion_tells_of_a_caught_sabotage() -> None:
    traceback = (
        "tests/faults/test_x.py:7: in test_it\n    verify()\ntests/traffic.py:9: in verify\n    assert lost == 0\n"
    )
    found = failure_of("test_x::test_it", "AssertionError: 3 are lost\nassert 3 == 0", traceback)
    assert (found.place, found.words, found.by_assertion) == ("tests/traffic.py:9", "3 are lost", True)
    assert failure_of("t", "assert 1 == 2", "").by_assertion
    for message in (
        "NameError: name 'x' is not defined",
        "collection failure",
        'failed on setup with "AssertionError"',
    ):
        assert not failure_of("t", message, "").by_assertion

"""The README says what is so: every code, setting, command, dead-letter reason and module is in it."""

from __future__ import annotations

import re
from pathlib import Path

from service.errors import Code
from service.records import DeadLetterReason
from service.rules import RULES
from service.settings import Settings, described

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = (
    "demo", "embedded", "migrate", "topics", "load FILE.jsonl", "run", "audit", "show reversal", "show redemption",
    "show customer", "show order", "show reward", "lanes list", "lanes reset", "parked list", "dlq list", "dlq show",
    "dlq replay", "settings",
)  # fmt: skip


def rows(section: str) -> list[list[str]]:
    """The cells of the table in a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_it_begins_with_the_two_commands() -> None:
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands[:2] == ["demo", "test"]


def test_the_codes_stand_in_their_order_with_what_they_promise() -> None:
    told = [(cells[1], cells[2], cells[3]) for cells in rows("The codes")]
    ruled = [rule.code for rule in RULES]
    codes = ruled + [code for code in Code if code not in ruled]
    assert told == [(str(code.number), code.label, "yes" if code.retryable else "no") for code in codes]


def test_every_setting_is_listed_with_its_default_and_reason() -> None:
    told = {tuple(cells) for cells in rows("Settings")}
    made = {(f"`{one.name}`", f"`{one.default}`" if one.default else "", one.reason) for one in described(Settings())}
    assert told == made


def test_every_command_is_listed() -> None:
    told = " ".join(cells[0] for cells in rows("Commands"))
    assert [command for command in COMMANDS if f"`{command}`" not in told] == []


def test_every_dead_letter_reason_is_named() -> None:
    assert [reason for reason in DeadLetterReason if f"`{reason}`" not in README] == []


def test_every_module_is_on_the_map() -> None:
    told = " ".join(cells[0] for cells in rows("Map"))
    modules = [path.name for path in (ROOT / "service").glob("[a-z]*.py")]
    assert [name for name in modules if name not in told and not name.startswith("embedded")] == []

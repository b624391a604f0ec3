"""The generated pages leave nothing out: every setting, every command, every public name."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import pytest

import ratelimit
from docs.hooks.commands import command_reference, commands, escaped
from docs.hooks.docstrings import as_markdown, definitions_of
from docs.hooks.pages import GENERATED, MARK, on_page_markdown
from docs.hooks.settings import field_docstrings, policy_reference, settings_reference, store_reference
from docs.hooks.text import cell, in_lines
from ratelimit.config import SETTINGS
from ratelimit.dynamodb import Settings
from ratelimit.policy import POLICY_SETTINGS
from tests.docs.pages import PAGES, text_of


def rows(table: str) -> dict[str, list[str]]:
    """The rows by what stands in their first cell."""
    found = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in found}


def test_every_setting_has_a_row_that_says_what_it_means() -> None:
    for table, names in ((settings_reference(), SETTINGS), (policy_reference(), POLICY_SETTINGS)):
        assert list(rows(table)) == list(names)
        assert all(default and len(meaning) > 10 for default, meaning in rows(table).values())


def test_defaults_are_shown_as_the_file_has_them() -> None:
    settings, policy = rows(settings_reference()), rows(policy_reference())
    assert settings["user_from"][0] == '`["user", "address"]`'
    assert settings["directory"][0] == "`false`"
    assert settings["api_token"][0] == "none"
    assert policy["quotas"][0] == "needed"


def test_every_parameter_of_a_tables_url_is_explained() -> None:
    names = {field.name for field in fields(Settings)} - {"table"}
    assert names == set(re.findall(r"`([a-z_]+)`", store_reference())) & names


def test_every_command_has_a_section_with_all_its_options() -> None:
    text = command_reference()
    sections = dict(re.findall(r"(?ms)^##+ `(ratelimit[^`]*)`\n(.*?)(?=^##+ |\Z)", text))
    assert len(sections) > 25
    for path, command, _ in commands():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert {option for option in options - {"--help"} if f"{option}" not in sections[path]} == set(), path


def test_every_public_name_is_on_the_page() -> None:
    page = text_of("docs/python-api.md")
    shown = set(re.findall(r"(?m)^::: ratelimit\.(?!testing|usage|client)(?:[a-z_]+\.)*(\w+)$", page))
    shown |= set(re.findall(r"`ratelimit\.(\w+)`", page))
    assert shown - {"sync"} == set(ratelimit.__all__) - {"__version__"}  # a module, which has a page


def test_every_mark_is_generated_and_everything_generated_is_marked() -> None:
    assert sorted(mark for page in PAGES for mark in MARK.findall(text_of(page))) == sorted(GENERATED)


def test_a_list_of_names_in_a_docstring_becomes_a_list() -> None:
    text = "One.\n\n`limit`  units;\n         at least 0\n`window` how long\n\n`x` is no list.\nNor is this."
    assert (
        as_markdown(text)
        == "One.\n\n- `limit`: units; at least 0\n- `window`: how long\n\n`x` is no list.\nNor is this."
    )
    assert definitions_of(text) == {"limit": "units; at least 0", "window": "how long"}


def test_a_field_that_nothing_is_said_about_has_no_docstring() -> None:
    @dataclass
    class Both:
        said: int
        """How
        many."""
        unsaid: int

    assert field_docstrings(Both) == {"said": "How many."}


@pytest.mark.parametrize(
    ("text", "shown"), [("a | b", "a \\| b"), ("`a|b` | c", "`a|b` \\| c"), ("two\nlines", "two lines")]
)
def test_a_cell_ends_where_it_should(text: str, shown: str) -> None:
    assert cell(text) == shown


def test_prose_of_a_terminal_means_itself() -> None:
    assert escaped("a <b>, on_unavailable, * and `x_<y>`") == "a \\<b>, on\\_unavailable, \\* and `x_<y>`"


def test_json_stands_on_as_few_lines_as_fit() -> None:
    assert in_lines({"a": [1, 2], "b": {"c": "é"}}) == '{\n  "a": [1, 2],\n  "b": {"c": "é"}\n}'
    assert in_lines(["x" * 60, "y" * 60], "  ").splitlines() == ["[", f'    "{"x" * 60}",', f'    "{"y" * 60}"', "  ]"]


def test_links_out_of_the_folder_become_text_and_drawings_become_part_of_the_page() -> None:
    text = "[it](../examples/app.py), [that](usage.md)\n\n![A bucket](images/gcra.svg)\n"
    page = on_page_markdown(text, page=None, config=None, files=None)
    assert page.startswith('it, [that](usage.md)\n\n<figure class="drawing" role="img" aria-label="A bucket"><svg')
    assert "<style>" not in page

"""What the documents name is there: files behind links, and the commands beside figures with their options."""

import importlib
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from wattbit.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "results").glob("*.md")])
COMMAND = r"(?:python benchmarks/|wattbit )"


def commands(text: str) -> list[str]:
    """Commands of a page: those in backticks that have an option, and the lines of its blocks, less their comments."""
    whole = re.sub(r"\s*\\\n\s*", " ", text)
    spans = re.findall(rf"`({COMMAND}[^`]* --[^`]*)`", re.sub(r"```.*?```", "", whole, flags=re.DOTALL))
    lines = re.findall(rf"^({COMMAND}[^#\n]*)", "\n".join(re.findall(r"```\n(.*?)```", whole, re.DOTALL)), re.MULTILINE)
    return [" ".join(found.split()) for found in spans + lines]


def found() -> list[tuple[str, str]]:
    """Every page's commands, and those that results' `about` files say they were made by, under their file's name."""
    pairs = {(page.name, command) for page in PAGES for command in commands(page.read_text())}
    for about in (ROOT / "results").glob("*.about.json"):
        pairs.add((about.name, json.loads(about.read_text())["command"]))
    return sorted(pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(("page", "text"), found())
def test_commands_have_the_options_that_they_are_given(page: str, text: str) -> None:
    program, *words = shlex.split(text)
    if program == "wattbit":
        command, arguments = main.commands[words[0]], words[1:]
    else:
        command, arguments = importlib.import_module(Path(words[0]).stem).main, words[1:]
    try:
        command.make_context(text, list(arguments))
    except click.MissingParameter:  # named for one option of it, as `wattbit search --task` is
        pass
    except click.BadParameter as error:  # a file or folder that the reader has
        assert "does not exist" in error.message, error.message
    except click.BadOptionUsage as error:
        assert error.option_name == arguments[-1], error.message

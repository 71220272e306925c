"""README's commands exist, with the options it gives them, and its files are there."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from deploy.cli import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = sorted(
    {line for block in BLOCKS for line in block.splitlines() if line.startswith("millstream ")}
    | set(re.findall(r"`(millstream [a-z][^`]*)`", README))
)
TARGETS = sorted(set(re.findall(r"^make ([a-z]+)", "\n".join(BLOCKS), re.MULTILINE)))
LINKS = sorted(set(re.findall(r"\]\(([^)#:]+)\)", README)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_readme_is_one_of_ours(line: str) -> None:
    words = shlex.split(line.replace("VERSION", "1"))[1:]
    command: click.Command = typer.main.get_command(build())
    context = click.Context(command, info_name="millstream")
    while isinstance(command, click.Group):
        if not words:
            break
        name, found, words = command.resolve_command(context, words)
        assert found is not None, f"{line}: no such command"
        command, context = found, click.Context(found, info_name=name, parent=context)
    required = [p for p in command.params if p.required and not words]
    if not required:
        command.make_context(command.name, words, resilient_parsing=False)


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_in_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", LINKS)
def test_every_file_that_the_readme_links_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_readme_names_the_essentials() -> None:
    assert len(COMMANDS) >= 15
    assert {"setup", "demo", "test", "bench", "soak", "lint"} <= set(TARGETS)

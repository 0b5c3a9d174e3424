"""Help texts of the command line, and the commands on the documentation page."""

import re
import shlex
from pathlib import Path

import pytest

from celldial.cli import demo
from celldial.cli.parser import CommandParser, check_usage, make_parser
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.networks import DECODERS
from helpers.cli import documentation, run


def test_choices_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    for names, option in ((LIKELIHOODS, "--likelihood"), (DECODERS, "--decoder")):
        for name in names:
            check(["fit", "a.h5ad", "--model", "m.celldial", option, name])
            assert name in command_parser("fit").format_help()


def commands_in(text: str) -> list[list[str]]:
    """Return the arguments of all lines of a text that start with ``celldial COMMAND``."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [
        line.split(" | ")[0].strip()
        for line in lines
        if re.match(r"\s*celldial (fit|map|traverse|markers|info|demo) .*\.?\w", line)
    ]
    return [shlex.split(line)[1:] for line in found]


def command_parser(command: str) -> CommandParser:
    """Return the parser of a command, with its options."""
    (action,) = (action for action in make_parser()._actions if action.dest == "command")
    return action.choices[command].complete()


def check(arguments: list[str]) -> None:
    """Check that a command can be parsed."""
    if arguments[0] == "demo":
        demo.parse(arguments[1:])
    else:
        check_usage(make_parser().parse_args(arguments))


def test_commands_in_the_documentation_can_be_parsed(root: Path) -> None:
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", documentation(root), re.MULTILINE | re.DOTALL))
    commands = commands_in(blocks)
    assert {arguments[0] for arguments in commands} == {"fit", "map", "traverse", "markers", "info", "demo"}
    assert len(commands) == sum(line.startswith("celldial ") for line in blocks.splitlines())
    for arguments in commands:
        check(arguments)


@pytest.mark.parametrize("command", ["fit", "map", "traverse", "markers", "info"])
def test_help_is_complete(root: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option is described here and in the documentation, and the examples can be parsed."""
    parser = command_parser(command)
    text = documentation(root)
    for action in parser._actions:
        assert action.help, action
        for option in set(action.option_strings) - {"-h", "--help"}:
            assert re.search(rf"{option}\b", text), f"{option} is not in the documentation"
    monkeypatch.setenv("COLUMNS", "80")
    help_text = parser.format_help()
    assert "reads:" in help_text
    assert max(map(len, help_text.splitlines())) <= 80
    examples = commands_in(help_text[help_text.index("examples:") :])
    assert len(examples) >= 2
    for arguments in examples:
        check(arguments)


def test_the_demo_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(demo, "main", lambda arguments: given.append(arguments) or 7)
    assert run("demo", "--out", "somewhere", "--max-epochs", "1") == 7
    assert given == [["--out", "somewhere", "--max-epochs", "1"]]

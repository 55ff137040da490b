"""The command line: what it answers to wrong input and to commands that fail."""

import subprocess
import sys

import pytest

from visionssm.cli import doctor, errors
from visionssm.cli.main import COMMANDS, build_parser, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert f"visionssm {command}" in text.partition("example")[2], "no example below the options"
    assert "--debug" in text


def test_a_mistyped_command_is_answered_with_the_near_one(capsys):
    assert main(["docter"]) == 2
    message = capsys.readouterr().err
    assert "'docter'" in message and "did you mean 'doctor'?" in message
    assert message.count("\n") == 1


def test_an_unlike_command_is_answered_with_the_choice(capsys):
    assert main(["zzz"]) == 2
    message = capsys.readouterr().err
    assert all(command in message for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "named"), [([], "COMMAND"), (["doctor", "--jsn"], "--jsn"), (["doctor", "more"], "more")]
)
def test_wrong_arguments_give_one_line_and_code_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert named in message and "--help" in message
    assert message.count("\n") == 1


def fail_with(error, monkeypatch):
    def run(args):
        raise error

    monkeypatch.setattr(doctor, "run", run)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("batch size: got 0,\n  need at least 1"), 2, "batch size: got 0, need at least 1"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 2, "a.png: No such file or directory"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm"), 2, "pip install 'visionssm[train]'"),
        (ModuleNotFoundError("No module named 'nosuch'", name="nosuch"), 1, "--debug"),
        (RuntimeError("shape mismatch"), 1, "RuntimeError: shape mismatch (run again with --debug for the traceback)"),
        (ValueError(), 1, "ValueError (run again"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failing_command_gives_one_line_and_its_code(error, code, message, monkeypatch, capsys):
    fail_with(error, monkeypatch)
    assert main(["doctor"]) == code
    captured = capsys.readouterr().err
    assert message in captured
    assert len(captured.strip().splitlines()) == 1


def test_debug_lets_the_exception_through(monkeypatch):
    fail_with(ValueError("wrong"), monkeypatch)
    with pytest.raises(ValueError, match="wrong"):
        main(["doctor", "--debug"])


def test_a_reader_that_leaves_early_is_no_error():
    program = "import sys; from visionssm.cli.main import main; sys.exit(main(['doctor']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == errors.BROKEN_PIPE
    assert said == b""


def test_every_extra_that_an_error_names_exists():
    from importlib import metadata

    provided = metadata.metadata("visionssm").get_all("Provides-Extra")
    assert set(errors.EXTRAS.values()) <= set(provided)


def test_the_parser_knows_every_command():
    _, commands = build_parser()
    assert tuple(commands) == COMMANDS

"""The command line, called in this process."""

import sys

import pytest

from circuits import cli


def run(monkeypatch, capsys, *arguments):
    """Status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["circuits", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err

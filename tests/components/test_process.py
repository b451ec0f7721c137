"""Seconds that the environment gives."""

import pytest

from components.process import seconds_of


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_what_is_no_number_of_seconds_ends_the_program_in_one_line(monkeypatch, given):
    monkeypatch.setenv("FOVEA_GRACE_SECONDS", given)
    with pytest.raises(SystemExit) as ended:
        seconds_of("FOVEA_GRACE_SECONDS", 30.0)
    assert ended.value.code == f"FOVEA_GRACE_SECONDS: not a number of seconds: {given}"


def test_seconds_are_read_or_their_default(monkeypatch):
    monkeypatch.setenv("FOVEA_GRACE_SECONDS", "2.5")
    assert seconds_of("FOVEA_GRACE_SECONDS", 30.0) == 2.5
    monkeypatch.setenv("FOVEA_GRACE_SECONDS", "")
    assert seconds_of("FOVEA_GRACE_SECONDS", 30.0) == 30.0

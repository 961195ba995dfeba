"""Commands end with one sentence and an honest exit code."""

import json

import pytest

from edge import cli
from edge.errors import EdgeError


def run_failing(monkeypatch, error):
    def fail(_options):
        raise error

    monkeypatch.setattr(cli, "_schema", fail)
    return cli.main(["schema"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(EdgeError("the disk is full; free some"), 2), (KeyboardInterrupt(), 130), (ValueError("a fault of ours"), 70)],
)
def test_errors_become_a_sentence_and_a_code(monkeypatch, capsys, error, code):
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert run_failing(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said and str(error) in said


def test_a_fault_of_ours_can_be_looked_into(monkeypatch):
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="a fault of ours"):
        run_failing(monkeypatch, ValueError("a fault of ours"))


def test_schemas_are_written_one_a_payload(tmp_path):
    assert cli.main(["schema", "--out", str(tmp_path / "deep" / "schemas")]) == 0
    names = {file.stem for file in (tmp_path / "deep" / "schemas").iterdir()}
    assert {"edge.result.v1", "edge.reject.v1", "edge.health.v1", "edge.alarm.v1"} <= names
    assert (
        json.loads((tmp_path / "deep" / "schemas" / "edge.result.v1.json").read_text())["$id"] == "urn:edge.result.v1"
    )


def test_schemas_cannot_go_into_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["schema", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_sample_config_is_printed_and_checks(tmp_path, capsys):
    assert cli.main(["check-config", "--sample"]) == 0
    config = tmp_path / "edge.toml"
    config.write_text(capsys.readouterr().out)
    assert cli.main(["check-config", "--config", str(config)]) == 0


@pytest.mark.parametrize("frames", ["0", "9"])
def test_bench_wants_enough_frames(frames, capsys):
    assert cli.main(["bench", "--frames", frames]) == 2
    assert "too few" in capsys.readouterr().err

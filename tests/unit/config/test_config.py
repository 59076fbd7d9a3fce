"""Where values come from, and what a user reads when one is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tessera.config import ServiceConfig, load, read
from tessera.domain.errors import InvalidInput


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queue: int = Field(default=10, ge=1, le=100)
    ratio: float = 0.5


class DemoConfig(ServiceConfig):
    address: str
    port: int = Field(default=8001, ge=0, le=65535)
    mode: Literal["fast", "safe"] = "safe"
    limits: Limits = Limits()
    endpoints: tuple[str, ...] = ()
    pools: dict[str, Limits] | None = None
    token: SecretStr | None = None
    folder: Path = Path("/tmp")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TESSERA_"):
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "demo.yaml"
    path.write_text(text)
    return path


def test_the_file_gives_values_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "address: host:1\nport: 9000\nlimits: {queue: 5, ratio: 0.25}\nendpoints: [a, b]\n")
    monkeypatch.setenv("TESSERA_PORT", "9001")
    monkeypatch.setenv("TESSERA_LIMITS__QUEUE", "7")
    monkeypatch.setenv("TESSERA_FAILPOINTS", "not a field of this service")
    config = load(DemoConfig, ["--config", str(path)])
    assert config.address == "host:1"
    assert config.port == 9001
    assert config.limits == Limits(queue=7, ratio=0.25)
    assert config.endpoints == ("a", "b")
    assert config.mode == "safe"
    assert config.otlp_endpoint is None


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_ADDRESS", "host:2")
    monkeypatch.setenv("TESSERA_ENDPOINTS", '["a", "b"]')
    monkeypatch.setenv("TESSERA_OTLP_ENDPOINT", "http://collector:4317")
    config = load(DemoConfig, [])
    assert (config.address, config.endpoints, config.otlp_endpoint) == ("host:2", ("a", "b"), "http://collector:4317")


def test_settings_do_not_change(tmp_path: Path) -> None:
    config = read(DemoConfig, write(tmp_path, "address: host:1"))
    with pytest.raises(ValueError, match="frozen"):
        config.port = 1


def test_every_problem_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "prot: 1\nport: 70000\nmode: quick\nlimits: {queue: many, extra: 1}\n")
    monkeypatch.setenv("TESSERA_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as caught:
        load(DemoConfig, ["--config", str(path)])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert "address: is required (in the file, or as TESSERA_ADDRESS)" in told
    assert "prot: unknown key; known are address" in told
    assert "port = 70000" in told
    assert "65535" in told
    assert "mode = 'quick'" in told
    assert "'fast' or 'safe'" in told
    assert "limits.queue = 'many'" in told
    assert "limits.extra: unknown key" in told
    assert "log_level = 'loud'" in told
    assert "Traceback" not in told
    assert "pydantic" not in told


def test_an_unknown_key_of_an_inner_part_lists_its_own_fields(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"limits\.extra: unknown key; known are queue, ratio$"):
        read(DemoConfig, write(tmp_path, "address: a\nlimits: {extra: 1}"))


def test_a_secret_is_never_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "address: a\ntoken: [hunter2]\n")
    with pytest.raises(InvalidInput) as caught:
        read(DemoConfig, path)
    assert "hunter2" not in str(caught.value)
    assert "token = (not shown)" in str(caught.value)
    with pytest.raises(SystemExit):
        load(DemoConfig, ["--config", str(write(tmp_path, "address: a\ntoken: hunter2\n")), "--show-config"])
    assert "hunter2" not in capsys.readouterr().out


def test_an_unknown_key_within_a_mapping_of_parts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"pools\.first\.extra: unknown key; known are queue, ratio$"):
        read(DemoConfig, write(tmp_path, "address: a\npools: {first: {extra: 1}}"))


def test_a_mapping_shows_its_keys_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="port = a mapping of token") as caught:
        read(DemoConfig, write(tmp_path, "address: a\nport: {token: hunter2}"))
    assert "hunter2" not in str(caught.value)


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(DemoConfig, write(tmp_path, f"address: a\nport: {'x' * 5000}\n"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "mapping"),
        ("1: a\n", "mapping"),
        ("address: [", "not valid YAML"),
        ("address: a\naddress: b\n", "'address' stands twice"),
        ("address: a\nlimits: {queue: 1, queue: 2}\n", "'queue' stands twice"),
        ("address: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_malformed_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read(DemoConfig, write(tmp_path, text))
    assert "demo.yaml" in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(DemoConfig, ["--config", str(tmp_path / "missing.yaml")])
    assert caught.value.code == 2
    assert "No such file" in capsys.readouterr().err
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read(DemoConfig, binary)


def test_a_value_of_the_environment_that_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_ADDRESS", "a")
    monkeypatch.setenv("TESSERA_ENDPOINTS", "a,b")
    with pytest.raises(InvalidInput, match="endpoints"):
        read(DemoConfig)


def test_show_config_prints_what_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_PORT", "1234")
    with pytest.raises(SystemExit) as caught:
        load(DemoConfig, ["--config", str(write(tmp_path, "address: a\n")), "--show-config"])
    assert caught.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["port"] == 1234
    assert shown["limits"] == {"queue": 10, "ratio": 0.5}
    assert shown["folder"] == "/tmp"
    del shown["token"]
    monkeypatch.delenv("TESSERA_PORT")
    again = read(DemoConfig, write(tmp_path, yaml.safe_dump(shown)))
    assert again.port == 1234


def test_an_empty_file_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_ADDRESS", "a")
    assert read(DemoConfig, write(tmp_path, "")).port == 8001


def test_a_wrong_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(DemoConfig, ["--cfg", "x"])
    assert caught.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_what_listens_everywhere_needs_a_host_to_be_told_to_others(tmp_path: Path) -> None:
    path = write(tmp_path, "address: 0.0.0.0:8011\n")
    with pytest.raises(InvalidInput) as caught:
        read(DemoConfig, path)
    assert "  advertise_host is required where address is 0.0.0.0:8011: others are told to call it" in str(caught.value)
    path = write(tmp_path, "address: 0.0.0.0:8011\nadvertise_host: scheduler-a\n")
    assert read(DemoConfig, path).advertised("0.0.0.0:8011") == "scheduler-a:8011"
    assert read(DemoConfig, write(tmp_path, "address: 10.0.0.7:1\n")).advertised("10.0.0.7:1") == "10.0.0.7:1"
    with pytest.raises(InvalidInput, match="advertise_host = 'a b'"):
        read(DemoConfig, write(tmp_path, "address: host:1\nadvertise_host: a b\n"))

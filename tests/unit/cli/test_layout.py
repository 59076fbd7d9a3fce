"""Where an embedded platform lies, and what its processes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.cli.embedded.layout import Layout, default_state_folder, run_folder_of
from tessera.domain.errors import InvalidInput

MAX_SOCKET_PATH = 108


@pytest.mark.parametrize("port_base", [0, 80, 1023, 65_500])
def test_a_port_base_out_of_range_is_named(tmp_path: Path, port_base: int) -> None:
    with pytest.raises(InvalidInput, match=f"--port-base {port_base}"):
        Layout(tmp_path, port_base)


@pytest.mark.parametrize("nodes", [0, 17])
def test_a_number_of_nodes_out_of_range_is_named(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(InvalidInput, match=f"--nodes {nodes}"):
        Layout(tmp_path, nodes=nodes)


def test_no_port_is_given_twice_with_most_nodes(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 8000, 16)
    ports = layout.ports()
    assert len(ports) == 11 + 4 * 16
    addresses = [settings["address"] for _, settings in layout.services().values()]
    assert len(set(addresses)) == len(addresses)
    assert {int(address.rpartition(":")[2]) for address in addresses} <= set(ports)


def test_every_trust_domain_has_a_gateway_and_on_every_node_a_store(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 8000, 2, domains=("alpha", "beta"))
    ports = layout.ports()
    assert [ports[port] for port in (8001, 8003, 8101, 8103)] == [
        "gateway (gRPC)",
        "gateway (admin)",
        "gateway-beta (gRPC)",
        "gateway-beta (admin)",
    ]
    services = {name: settings for name, (_, settings) in layout.services().items()}
    assert (services["gateway"]["trust_domain"], services["gateway-beta"]["trust_domain"]) == ("alpha", "beta")
    assert services["gateway-beta"]["address"] == "127.0.0.1:8101"
    assert services["registry"]["trust_domains"] == services["scheduler"]["trust_domains"] == ["alpha", "beta"]
    for index in range(2):
        assert [store["trust_domain"] for store in services[f"node-agent-{index}"]["stores"]] == ["alpha", "beta"]
    assert len(set(layout.stores())) == 4
    assert layout.doors.splitlines()[1].startswith("beta: gRPC (Open Inference) on 127.0.0.1:8101")


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        (("alpha", "alpha"), "--trust-domain 'alpha': must be given once"),
        (("Alpha",), "--trust-domain 'Alpha'"),
        (tuple(f"d{number}" for number in range(9)), "--trust-domain 9: must be given at most 8 times"),
    ],
)
def test_trust_domains_that_cannot_be_are_named(tmp_path: Path, domains: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Layout(tmp_path, domains=domains)


def test_sockets_stay_short_however_long_the_state_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "very-long-folder-name/" * 5)
    layout = Layout(tmp_path / ("deep/" * 40))
    socket = layout.node_run(15) / "d-0123ab" / "measure-aten-0123ab-0123456789" / "control.sock"
    assert len(str(socket)) < MAX_SOCKET_PATH


def test_run_folders_belong_to_their_state_folder(tmp_path: Path) -> None:
    assert run_folder_of(tmp_path / "a") == run_folder_of(tmp_path / "a")
    assert run_folder_of(tmp_path / "a") != run_folder_of(tmp_path / "b")


def test_the_state_folder_comes_from_the_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TESSERA_STATE", raising=False)
    assert default_state_folder() == tmp_path / "tessera"
    monkeypatch.setenv("TESSERA_STATE", str(tmp_path / "mine"))
    assert default_state_folder() == tmp_path / "mine"


def test_the_gateway_starts_last_and_each_node_has_folders_of_its_own(tmp_path: Path) -> None:
    services = Layout(tmp_path, nodes=3).services()
    assert list(services)[-1] == "gateway"
    nodes = [settings for name, (_, settings) in services.items() if name.startswith("node-agent")]
    for key in ("node_id", "state_folder", "run_folder", "address", "relay_address"):
        assert len({settings[key] for settings in nodes}) == 3, key


def test_nodes_that_may_be_added_are_copies_of_the_first_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path, nodes=2, more_nodes=3)
    for name in ("scheduler", "scheduler-standby"):
        _, settings = layout.services()[name]
        assert (settings["node_provider"], settings["most_added_nodes"]) == ("local", 3)
        assert settings["node_template"] == str(tmp_path / "config" / "node-agent-0.yaml")
        assert settings["node_folder"] == str(layout.added)
    _, settings = Layout(tmp_path, nodes=2).services()["scheduler"]
    assert "node_provider" not in settings
    with pytest.raises(InvalidInput, match=r"--more-nodes -1: must be from 0 to 16"):
        Layout(tmp_path, more_nodes=-1)

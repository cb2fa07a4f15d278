"""The doctor before the real kernel: what it says, how it ends, and that it changes nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bpf import bcc_loader
from tests.support.netns import Namespace, veth
from tests.support.somebody import AS_NOBODY

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]


def doctor(
    space: Namespace, environment: dict[str, str] | None = None
) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    """Exit code, checks by name, and the whole document."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TEGUMENTAR_")}
    everything = clean | {"TEGUMENTAR_INTERFACES": "lo"} | (environment or {})
    done = space.run(sys.executable, str(ROOT / "run.py"), "doctor", "--json", check=False, env=everything)
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    return done.returncode, {check["name"]: check for check in document["checks"]}, document


def test_an_nft_that_the_service_would_not_find_is_no_nft(tmp_path: Path) -> None:
    for name in ("nsenter", "setpriv"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")

    with Namespace("doctor") as space:
        code, checks, document = doctor(space, {"PATH": str(tmp_path)})

    assert code != 0
    assert checks["nft"]["state"] == "no"
    assert "not in PATH" in checks["nft"]["says"]
    assert "nftables" not in document["enforcement"]


def test_pins_outside_the_bpf_file_system_are_said_to_cost_the_program(tmp_path: Path) -> None:
    with Namespace("doctor") as space:
        code, checks, _ = doctor(space, {"TEGUMENTAR_BPF_DIR": str(tmp_path)})

    assert code == 6
    assert checks["bpffs"]["state"] == "no"
    assert "nftables protects alone" in checks["bpffs"]["consequence"]
    assert "TEGUMENTAR_BPF_DIR" in checks["bpffs"]["remedy"]


def test_this_host_can_protect_and_every_answer_has_its_parts(tmp_path: Path) -> None:
    with Namespace("doctor") as space:
        code, checks, document = doctor(space, {"TEGUMENTAR_STATE_DIR": str(tmp_path)})

    assert code in {0, 6}
    assert document["enforcement"][0] == "native XDP"
    for name in ("ring_buffer", "lpm_trie", "mmapable_array", "xdp_native", "xdp_generic", "tcx", "egress", "nft",
                 "nft_rights"):  # fmt: skip
        assert checks[name]["state"] == "yes", checks[name]
    for check in checks.values():
        assert check["state"] in {"yes", "no", "unknown"}
        assert set(check) >= {"name", "state", "consequence", "remedy"}
        if check["state"] == "no":
            assert check["consequence"], check
            assert check["remedy"], check
    assert document["seconds"] < 5


def test_asking_changes_nothing_in_the_namespace() -> None:
    with Namespace("doctor") as space:
        before = space.run("ip", "-json", "-details", "link").stdout, space.run("nft", "list", "ruleset").stdout

        doctor(space)

        assert (
            space.run("ip", "-json", "-details", "link").stdout,
            space.run("nft", "list", "ruleset").stdout,
        ) == before


def test_a_missing_object_is_named_with_its_remedy(tmp_path: Path) -> None:
    with Namespace("doctor") as space:
        code, checks, document = doctor(space, {"TEGUMENTAR_BPF_OBJECT": str(tmp_path / "none.o")})

    assert checks["bpf_object"]["state"] == "no"
    assert checks["bpf_object"]["remedy"] == "make bpf"
    assert document["enforcement"] == ([] if bcc_loader.missing() else ["native XDP"]) + ["nftables"]
    assert code == 6


def test_the_second_loader_is_told_and_its_absence_is_only_a_note() -> None:
    with Namespace("doctor") as space:
        _, checks, _ = doctor(space)

    assert checks["bcc"]["state"] == ("no" if bcc_loader.missing() else "yes")
    assert checks["bcc"]["state"] == "yes" or checks["bcc"]["weight"] == "note"


def test_an_object_that_is_none_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "bad.o").write_bytes(b"\x7fELF" + b"\x00" * 64)
    with Namespace("doctor") as space:
        _, checks, _ = doctor(space, {"TEGUMENTAR_BPF_OBJECT": str(tmp_path / "bad.o")})

    assert checks["bpf_object"]["state"] == "no"
    assert "does not fit" in checks["bpf_object"]["says"]


def test_an_interface_that_only_its_own_namespace_has_is_found_with_driver_and_mtu() -> None:
    with Namespace("doctor") as space, Namespace("other") as other:
        veth(space, other, "skin0", "far0")

        _, checks, _ = doctor(space, {"TEGUMENTAR_INTERFACES": "skin0"})

    assert checks["interface:skin0"]["state"] == "yes"
    assert checks["interface:skin0"]["says"] == "driver veth, MTU 1500, native XDP expected"


def test_an_absent_interface_and_a_taken_port_are_found() -> None:
    with Namespace("doctor") as space:
        with space.entered():
            squatter = socket.create_server(("127.0.0.1", 18085))
        try:
            _, checks, _ = doctor(space, {"TEGUMENTAR_INTERFACES": "absent0", "TEGUMENTAR_GATEWAY__PORT": "18085"})
        finally:
            squatter.close()

    assert checks["interface:absent0"]["state"] == "no"
    assert checks["gateway_port"]["state"] == "no"
    assert "18085" in checks["gateway_port"]["says"]


def test_servers_are_asked_only_when_they_are_named_and_their_secrets_are_not_shown() -> None:
    environment = {
        "TEGUMENTAR_MEMORY__POSTGRES_DSN": "postgres://u:hunter2/+=@127.0.0.1:9/d",
        "TEGUMENTAR_REDIS__URL": "redis://:hunter2@127.0.0.1:9",
        "TEGUMENTAR_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9",
    }
    with Namespace("doctor") as space:
        _, without, _ = doctor(space)
        code, checks, document = doctor(space, environment)

    assert not {"postgresql", "redis", "kafka:127.0.0.1:9"} & set(without)
    for name in ("postgresql", "redis", "kafka:127.0.0.1:9"):
        assert checks[name]["state"] == "no"
        assert "refused" in checks[name]["says"]
    assert "hunter2" not in json.dumps(document)
    assert code == 6


def test_without_rights_the_doctor_says_that_this_user_can_only_watch() -> None:
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "run.py", "doctor", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1", "TEGUMENTAR_INTERFACES": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )

    document = json.loads(done.stdout)
    checks = {check["name"]: check for check in document["checks"]}
    assert done.returncode == 1
    assert checks["capabilities"]["state"] == "no"
    assert checks["ring_buffer"]["state"] == "unknown"
    assert document["enforcement"] == []

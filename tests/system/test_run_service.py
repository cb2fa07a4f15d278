"""The service verb itself: what a person sees, how it starts without rights, and how it ends."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.netns import Namespace
from tests.support.service import a_node
from tests.support.somebody import AS_NOBODY

pytestmark = [pytest.mark.system, pytest.mark.kernel]

ROOT = Path(__file__).resolve().parents[2]


def environment(directory: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TEGUMENTAR_")}
    return clean | {
        "TEGUMENTAR_STATE_DIR": str(directory / "state"),
        "TEGUMENTAR_RUN_DIR": str(directory / "run"),
        "TEGUMENTAR_LOG_DIR": str(directory / "log"),
        "TEGUMENTAR_BPF_DIR": str(directory / "no-bpffs"),
        "TEGUMENTAR_INTERFACES": "lo",
        "TEGUMENTAR_GATEWAY__PORT": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def until(happened: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.05)


def test_a_person_at_a_terminal_gets_an_account_and_no_json(tmp_path: Path) -> None:
    with Namespace("account") as space:
        primary, secondary = pty.openpty()
        process = space.popen(
            sys.executable,
            str(ROOT / "run.py"),
            env=environment(tmp_path, TERM="dumb", COLUMNS="100"),
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            cwd=ROOT,
        )
        os.close(secondary)
        try:
            shown = read_terminal(primary, lambda text: "Ctrl-C stops" in text)
            process.send_signal(signal.SIGINT)
            shown += read_terminal(primary, lambda text: "goes on protecting" in text)
            code = process.wait(15)
        finally:
            process.kill()
            process.wait()
            os.close(primary)

    assert code == 0
    for cell in ("reflex_arc", "keratinocyte", "permeability", "memory_cell", "merkel", "gateway"):
        assert cell in shown
    assert "stopped; what the kernel holds goes on protecting" in shown
    assert '"level": "info"' not in shown


def read_terminal(descriptor: int, enough: Callable[[str], bool], limit_s: float = 30.0) -> str:
    text, deadline = "", time.monotonic() + limit_s
    while not enough(text) and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                text += os.read(descriptor, 65536).decode(errors="replace")
            except OSError:
                break
    assert enough(text), text
    return text


def test_without_rights_it_starts_observing_and_says_which_capability_is_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    log = tmp_path / "log.txt"
    settings = environment(home)
    with Namespace("observe") as space, log.open("wb") as sink:
        process = space.popen(
            *AS_NOBODY, sys.executable, str(ROOT / "run.py"), env=settings, stdout=sink, stderr=sink, cwd=ROOT
        )
        try:
            until(lambda: '"event": "ready"' in log.read_text() or process.poll() is not None, 30, log.read_text())
            told = space.run(
                *AS_NOBODY, sys.executable, str(ROOT / "run.py"), "status", "--json", check=False, env=settings
            )
            process.terminate()
            code = process.wait(15)
        finally:
            process.kill()
            process.wait()

    privileges = next(json.loads(line) for line in log.read_text().splitlines() if '"event": "privileges"' in line)
    assert "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON" in privileges["problem"]
    assert privileges["remedy"]
    assert told.returncode == 0, told.stderr
    cells = {cell["name"]: cell for cell in json.loads(told.stdout)["cells"]}
    assert cells["permeability"]["state"] == "healthy"
    assert cells["gateway"]["state"] == "healthy"
    for name in ("reflex_arc", "keratinocyte"):
        assert cells[name]["state"] in {"degraded", "off"}
        assert cells[name]["reason"]
        assert cells[name]["remedy"]
    assert code == 0


def test_a_second_service_in_the_same_directory_is_refused_and_the_first_goes_on() -> None:
    with a_node(echo=False) as node:
        second = node.cli()

        assert second.returncode == 1
        assert "already runs" in second.stderr
        assert node.ask("node")["ready"]


def test_settings_are_read_again_on_sighup(tmp_path: Path) -> None:
    file = tmp_path / "tegumentar.toml"
    file.write_text("[supervisor]\noff = []\n")
    with a_node({"TEGUMENTAR_CONFIG": str(file)}, echo=False) as node:
        file.write_text('[supervisor]\noff = ["merkel"]\n')

        os.kill(node.service.pid(), signal.SIGHUP)

        node.until(lambda: node.cells()["merkel"]["state"] == "off", 10)
        file.write_text('[supervisor]\noff = "three"\nmisspelt = 1\n')
        os.kill(node.service.pid(), signal.SIGHUP)
        node.until(lambda: "misspelt" in node.service.log.read_text(), 10)
        assert node.cells()["merkel"]["state"] == "off"
        assert node.ask("node")["ready"]


def test_config_check_is_fit_to_guard_a_start(tmp_path: Path) -> None:
    good, odd, bad = tmp_path / "good.toml", tmp_path / "odd.toml", tmp_path / "bad.toml"
    good.write_text("[gateway]\nport = 9000\n")
    odd.write_text('[reflex]\nsyn_rate = "nine"\n')
    bad.write_text('[permeability]\nposture = "ajar"\n')

    results = {
        file.stem: subprocess.run(
            [sys.executable, "run.py", "config", "check", "--config", str(file), "--json"],
            cwd=ROOT,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        for file in (good, odd, bad)
    }

    assert {name: done.returncode for name, done in results.items()} == {"good": 0, "odd": 0, "bad": 78}
    assert json.loads(results["odd"].stdout)["warnings"]
    assert "permeability.posture" in json.loads(results["bad"].stdout)["problems"][0]

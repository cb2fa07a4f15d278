"""The gateway on a socket file: who may use it, what lies in its way, and that the same application answers there."""

import errno
import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from actors.core.errors import Unavailable
from actors.hypodermis.gateway.server import listen_local
from tests.support.gateway import AUTHORIZED, gateway

GROUP = 65_533


def ask(path: Path, method: str, target: str, *headers: str, body: str = "") -> tuple[int, str]:
    """Status and body of one request through the socket file."""
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(str(path))
        line.sendall("\r\n".join([*head, *headers, "", body]).encode())
        answer = b"".join(iter(lambda: line.recv(65_536), b"")).decode()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sock"


def test_the_same_application_answers_there_and_a_change_still_wants_the_token(path: Path) -> None:
    with gateway(local=path) as running:
        assert ask(path, "GET", "/livez")[0] == 200
        assert ask(path, "GET", "/api/tegumentar/qualia") == (200, '{"verb":"qualia"}')
        refused, _ = ask(path, "POST", "/api/tegumentar/cells/merkel/restart")
        token = f"Authorization: {AUTHORIZED['Authorization']}"
        changed, _ = ask(path, "POST", "/api/tegumentar/cells/merkel/restart", token)

        assert running.http.get("/livez").status_code == 200, "the port serves as well"

    assert (refused, changed) == (401, 200)
    assert [(verb, by) for verb, _, by in running.node.asked if verb == "cell.restart"] == [
        ("cell.restart", "http local")
    ]


def test_a_program_of_this_host_may_ask_for_its_rate_without_a_token_there_too(path: Path) -> None:
    with gateway(local=path):
        form = "Content-Type: application/json"
        status, _ = ask(path, "POST", "/api/tegumentar/ratelimit", form, body='{"key": "a"}')

    assert status == 200


def connects_as(user: int, groups: list[int], path: Path) -> bool:
    """Whether a process of this user and these groups gets through."""
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        with socket.socket(socket.AF_UNIX) as line:
            os._exit(line.connect_ex(str(path)))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, errno.EACCES)
    return code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to a group")
def test_only_root_and_the_group_may_connect() -> None:
    with tempfile.TemporaryDirectory() as directory:  # on the way to it nobody is stopped
        Path(directory).chmod(0o755)
        path = Path(directory, "gateway.sock")
        listener = listen_local(path, GROUP)

        found = path.stat()
        member, stranger = connects_as(65_534, [GROUP], path), connects_as(65_534, [], path)

        listener.close()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, GROUP, 0o660)
    assert (member, stranger) == (True, False)


def test_what_a_dead_process_left_there_is_replaced(path: Path) -> None:
    listen_local(path, -1).close()

    listener = listen_local(path, -1)

    thread = threading.Thread(target=lambda: socket.socket(socket.AF_UNIX).connect(str(path)))
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    listener.close()


@pytest.mark.parametrize("obstacle", ["file", "directory", "link", "living", "nowhere", "long"])
def test_what_else_is_in_the_way_is_told_and_left_alone(path: Path, obstacle: str) -> None:
    living = None
    if obstacle == "file":
        path.write_text("precious")
    elif obstacle == "directory":
        path.mkdir()
    elif obstacle == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif obstacle == "living":
        living = listen_local(path, -1)
    elif obstacle == "nowhere":
        path = path.parent / "absent" / "gateway.sock"
    else:
        path = path.parent / ("x" * 120)
    before = path.lstat().st_ino if path.is_symlink() or path.exists() else 0

    with pytest.raises(Unavailable) as refused:
        listen_local(path, -1)

    if living is not None:
        living.close()
    assert str(path) in str(refused.value)
    assert refused.value.remedy
    assert (path.lstat().st_ino if path.is_symlink() or path.exists() else 0) == before

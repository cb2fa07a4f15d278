"""The doctor tells a compiled program from one of older sources."""

from pathlib import Path

import pytest

from actors.admin.doctor import kernel
from actors.admin.doctor.check import State
from bpf import build


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An object beside sources of its own, with the stamp that the compiler's run leaves."""
    sources = tmp_path / "bpf"
    sources.mkdir()
    (sources / "program.bpf.c").write_text("int x;")
    (sources / "parse.h").write_text("int y;")
    target = tmp_path / "program.bpf.o"
    target.touch()
    monkeypatch.setattr(build, "SOURCE_DIR", sources)
    monkeypatch.setenv("TEGUMENTAR_BPF_OBJECT", str(target))
    target.with_suffix(".stamp").write_text(build._stamp_of("/usr/bin/true", ["-O2"]))
    return sources


def test_an_object_of_these_sources_is_told_as_such(compiled: Path) -> None:
    assert kernel._sources().state is State.YES


@pytest.mark.parametrize("change", ["program.bpf.c", "parse.h", "new.h"])
def test_an_object_older_than_a_source_is_told_with_the_remedy(compiled: Path, change: str) -> None:
    (compiled / change).write_text("int z;")

    check = kernel._sources()

    assert check.state is State.NO
    assert "other sources" in check.says
    assert check.remedy == "make bpf"


@pytest.mark.parametrize("stamp", [None, b"", b"deadbeef", b"\xff\xfe\n\xff\n", b"a\nb\nc\n"])
def test_an_object_whose_stamp_says_nothing_is_of_unknown_age(compiled: Path, stamp: bytes | None) -> None:
    path = build.object_path().with_suffix(".stamp")
    path.unlink() if stamp is None else path.write_bytes(stamp)

    assert kernel._sources().state is State.UNKNOWN


def test_a_second_compilation_of_the_same_sources_has_the_same_stamp_and_another_compiler_has_not(
    compiled: Path,
) -> None:
    first = build._stamp_of("/usr/bin/true", ["-O2"])

    assert build._stamp_of("/usr/bin/true", ["-O2"]) == first
    assert build._stamp_of("/usr/bin/false", ["-O2"]).split()[0] == first.split()[0]
    assert build._stamp_of("/usr/bin/false", ["-O2"]) != first
    assert build._stamp_of("/usr/bin/true", ["-O3"]) != first

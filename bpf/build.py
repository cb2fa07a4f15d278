"""Compiles the kernel program: ``python -m bpf.build``.

The object is stamped with a hash of everything that went into it, so a second run only reads the sources. A compiler
is needed here and never on the node that loads the object.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bpf.errors import DataPlaneError

SOURCE_DIR = Path(__file__).resolve().parent
SOURCE = SOURCE_DIR / "reflex_arc.bpf.c"
DEFAULT_OBJECT = SOURCE_DIR.parent / "build" / "bpf" / "reflex_arc.bpf.o"

#: -mcpu=v3 (kernel 5.1) brings 32-bit jumps; -g brings the type information that bpf/abi.py reads.
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror")


def object_path() -> Path:
    """Where the compiled program lies; ``TEGUMENTAR_BPF_OBJECT`` names another place."""
    return Path(os.environ.get("TEGUMENTAR_BPF_OBJECT") or DEFAULT_OBJECT)


def _system_includes() -> list[str]:
    """Debian keeps the asm/ headers of linux-libc-dev in a directory per architecture, unknown to the BPF target."""
    return [f"-I{path}" for path in sorted(Path("/usr/include").glob("*-linux-gnu")) if (path / "asm").is_dir()]


def _stamp_of(compiler: str, flags: list[str]) -> str:
    """Two lines: a hash of the sources, which can be compared where there is no compiler, and one of the rest."""
    tools = hashlib.sha256("\0".join([*flags, str(Path(compiler).resolve())]).encode())
    return f"{_hash_of_sources()}\n{tools.hexdigest()}\n"


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def made_of_these_sources(target: Path) -> bool | None:
    """Whether the object was compiled from the sources that lie here now; None when nothing tells."""
    try:
        stamp = target.with_suffix(".stamp").read_text().split()
    except (OSError, UnicodeDecodeError):
        return None
    return stamp[0] == _hash_of_sources() if len(stamp) == 2 else None


def build(target: Path = DEFAULT_OBJECT) -> bool:
    """Compile if anything changed. Returns whether it did. Raises DataPlaneError with the compiler's words."""
    compiler = shutil.which("clang")
    if compiler is None:
        raise DataPlaneError(
            "cannot compile the kernel program: no clang here", remedy="apt-get install clang libbpf-dev"
        )
    flags = [*FLAGS, *_system_includes()]
    stamp, stamp_file = _stamp_of(compiler, flags), target.with_suffix(".stamp")
    if target.exists() and stamp_file.exists() and stamp_file.read_text() == stamp:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}.tmp")
    run = subprocess.run(
        [compiler, *flags, "-c", str(SOURCE), "-o", str(fresh)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise DataPlaneError(f"clang refused {SOURCE.name}:\n{run.stderr.strip()}", remedy="see the compiler's message")
    fresh.replace(target)
    stamp_file.write_text(stamp)
    return True


def main() -> int:
    try:
        done = build()
    except DataPlaneError as error:
        print(f"bpf.build: {error}\nremedy: {error.remedy}", file=sys.stderr)
        return 1
    if done:
        print(f"compiled {DEFAULT_OBJECT.relative_to(SOURCE_DIR.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

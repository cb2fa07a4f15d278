"""Reads the type information (BTF) of a compiled BPF object: structures as numpy dtypes, enumerations as names.

Covers what clang writes for C: integers, pointers, arrays, structs, unions, enums, typedefs, qualifiers, variables and
data sections. Raises BtfError for anything that is not such an object. Source: Documentation/bpf/btf.rst of Linux.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC_PROTO, VAR, DATASEC = (
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15,
)  # fmt: skip
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19

_QUALIFIERS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
#: bytes that follow the header of one type: fixed, and per member
_EXTRA = {INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8), FUNC_PROTO: (0, 8), VAR: (4, 0),
          DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12)}  # fmt: skip


class BtfError(Exception):
    """The file is no BPF object with type information, or lacks the type asked for."""


class _Type(NamedTuple):
    kind: int
    name: str
    size: int  #: or the id of the type referred to
    extra: tuple[tuple[int, ...], ...]


def elf_sections(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Section name → (index, content) of a little-endian 64-bit ELF file."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise BtfError("not a little-endian 64-bit ELF file")
        (table,) = struct.unpack_from("<Q", data, 40)
        entry, count, names_index = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]
        names = headers[names_index][4]
        found = {}
        for index, header in enumerate(headers):
            start = names + header[0]
            name = data[start : data.index(b"\0", start)].decode()
            found[name] = (index, data[header[4] : header[4] + header[5]])
        return found
    except (struct.error, IndexError, ValueError) as error:
        raise BtfError(f"broken ELF file: {error}") from error


class Btf:
    """The types of one object."""

    def __init__(self, data: bytes, *, bare: bool = False) -> None:
        """bare: not the object but its type information alone, as the kernel keeps it; it knows no variables."""
        self._sections = {".BTF": (0, data)} if bare else elf_sections(data)
        if ".BTF" not in self._sections:
            raise BtfError("the object has no type information: compile it with -g")
        try:
            self._types = list(_types(self._sections[".BTF"][1]))
        except (struct.error, ValueError) as error:
            raise BtfError(f"broken type information: {error}") from error
        self._structs = {t.name: i for i, t in enumerate(self._types) if t.kind == STRUCT and t.name}
        self._enums = {t.name: t for t in self._types if t.kind == ENUM and t.name}

    @classmethod
    def of(cls, path: Path) -> "Btf":
        return cls(path.read_bytes())

    def dtype(self, name: str) -> np.dtype[np.void]:
        """The structure as a numpy dtype with C's own offsets and size."""
        if name not in self._structs:
            raise BtfError(f"the object does not know struct {name}")
        found: np.dtype[np.void] = self._dtype(self._structs[name])
        return found

    def enum(self, name: str) -> dict[str, int]:
        if name not in self._enums:
            raise BtfError(f"the object does not know enum {name}")
        return {self._names(member[0]): member[1] for member in self._enums[name].extra}

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Variable → (offset, size) in a data section. Offsets come from the symbols: clang leaves them 0 in BTF."""
        if section not in self._sections:
            raise BtfError(f"the object has no section {section}")
        index, _ = self._sections[section]
        symbols, strings = self._sections[".symtab"][1], self._sections[".strtab"][1]
        found = {}
        for at in range(0, len(symbols), 24):
            name, info, _other, where, value, size = struct.unpack_from("<IBBHQQ", symbols, at)
            if where == index and info & 15 == 1:
                found[strings[name : strings.index(b"\0", name)].decode()] = (value, size)
        return found

    def _names(self, offset: int) -> str:
        return _string(self._sections[".BTF"][1], offset)

    def _strip(self, index: int) -> int:
        while self._types[index].kind in _QUALIFIERS:
            index = self._types[index].size
        return index

    def _dtype(self, index: int) -> Any:
        found = self._types[self._strip(index)]
        if found.kind == INT:
            signed = found.extra[0][0] >> 24 & 1
            return np.dtype(f"<{'i' if signed else 'u'}{found.size}")
        if found.kind == ENUM:
            return np.dtype(f"<u{found.size}")
        if found.kind == PTR:
            return np.dtype("<u8")
        if found.kind == ARRAY:
            element, _index_type, count = found.extra[0]
            return np.dtype((self._dtype(element), (count,)))
        if found.kind in (STRUCT, UNION):
            members = found.extra
            return np.dtype(
                {
                    "names": [self._names(m[0]) or f"_{i}" for i, m in enumerate(members)],
                    "formats": [self._dtype(m[1]) for m in members],
                    "offsets": [(m[2] & 0xFFFFFF) // 8 for m in members],
                    "itemsize": found.size,
                }
            )
        raise BtfError(f"no numpy type for BTF kind {found.kind}")


def _string(section: bytes, offset: int) -> str:
    header_length, strings = struct.unpack_from("<I", section, 4)[0], struct.unpack_from("<I", section, 16)[0]
    start = header_length + strings + offset
    return section[start : section.index(b"\0", start)].decode()


def _types(section: bytes) -> list[_Type]:
    magic, _version, _flags, header, types_at, types_size = struct.unpack_from("<HBBIII", section)
    if magic != 0xEB9F:
        raise BtfError("the type information has a foreign byte order")
    found = [_Type(0, "void", 0, ())]
    at, end = header + types_at, header + types_at + types_size
    while at < end:
        name, info, size = struct.unpack_from("<III", section, at)
        kind, members = info >> 24 & 31, info & 0xFFFF
        fixed, each = _EXTRA.get(kind, (0, 0))
        at += 12
        rows = []
        for _ in range(1 if fixed else members if each else 0):
            width = (fixed or each) // 4
            layout = "<Ii" if kind == ENUM else f"<{width}I"
            rows.append(struct.unpack_from(layout, section, at))
            at += fixed or each
        found.append(_Type(kind, _string(section, name), size, tuple(rows)))
    return found

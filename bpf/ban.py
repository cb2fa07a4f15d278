"""One entry of the dynamic ban table, as an object. Many of them are arrays: bpf/ban_rows.py."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ban:
    """subject: text (bpf/dataplane.py). until_ns 0: until released. reason: a name of ``bpf.abi.REASONS``."""

    subject: str
    until_ns: int = 0
    reason: str = "ban"
    by_kernel: bool = False
    packets: int = 0  #: dropped because of it so far

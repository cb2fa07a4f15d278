"""Records for other tools: valid by the field's rules, whole lines, bounded, alive on a full disk."""

import json
import os
import re
import subprocess
import time

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.core import packed
from actors.core.messages import Anomaly, Entry, Record, Recorded
from actors.dermis import eve
from actors.dermis.eve import LineFile
from actors.dermis.memory_cell import MemoryCell
from config.settings import Settings
from tests.support.core import Dish
from tests.support.memory import NOW, ban_entry, entry

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def closed(**fields):
    return {"type": "object", "properties": fields, "additionalProperties": False}


#: The field's rules for what we write, in our words: nothing beyond these names is valid at any of these places.
SCHEMA = closed(
    timestamp={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}[+-]\d{4}$"},
    event_type={"enum": ["alert", "drop", "flow", "anomaly"]},
    src_ip=STRING, src_port=INTEGER, dest_ip=STRING, dest_port=INTEGER, proto=STRING, community_id=STRING,
    alert=closed(
        action={"enum": ["allowed", "blocked"]}, gid=INTEGER, rev=INTEGER, signature=STRING, category=STRING,
        signature_id={"type": "integer", "minimum": 1_000_000, "maximum": 1_999_999},
        severity={"type": "integer", "minimum": 1, "maximum": 3},
        metadata=closed(tag={"type": "array", "items": STRING}),
    ),
    drop=closed(reason=STRING),
    flow=closed(
        pkts_toserver=INTEGER, pkts_toclient=INTEGER, bytes_toserver=INTEGER, bytes_toclient=INTEGER,
        start=STRING, end=STRING, age=INTEGER, state=STRING,
    ),
    anomaly=closed(type=STRING, event=STRING),
) | {"required": ["timestamp", "event_type"]}  # fmt: skip

SESSION = entry(
    "session", "s", subject="203.0.113.7", source="203.0.113.7", source_port=40000, dest="10.77.0.1", dest_port=22,
    protocol="tcp", state="closed", packets=[12, 9], bytes=[1800, 2400], lasted_s=3.5,
)  # fmt: skip
REFLEX = entry(
    "ban", "r", subject="203.0.113.7", action="ban", origin="reflex_arc", reflex="syn_flood", by="",
    reason="kernel reflex syn_flood", evidence="401 packets", until_unix_s=NOW + 60,
)  # fmt: skip


def valid(record):
    jsonschema.validate(json.loads(eve.encode(record)), SCHEMA)
    return record


@pytest.mark.parametrize("reflex", ["", "syn_flood"])
def test_a_ban_of_many_reads_as_if_each_had_been_banned_alone(reflex):
    subjects = ["203.0.113.7", "2001:db8::7", "198.51.100.0/24"]
    body = {"action": "ban", "origin": "operator", "reflex": reflex, "reason": "0.0.0.0 said so", "until_unix_s": NOW}
    many = Entry(key="m", kind="ban", at_unix_s=NOW, body=body, subjects=packed.pack(subjects))

    told = [json.loads(line) for line in eve.of_many(many)]

    alone = [record for s in subjects for _, record in eve.lines(entry("ban", "m", subject=s, **body))]
    assert sorted(told, key=str) == sorted(alone, key=str)
    for record in told:
        valid(record)


def test_a_ban_by_reflex_is_an_alert_and_a_drop():
    alert, drop = (valid(record) for name, record in eve.lines(REFLEX) if name == eve.EVE)

    assert alert["event_type"] == "alert"
    assert alert["alert"]["action"] == "blocked"
    assert alert["src_ip"] == "203.0.113.7"
    assert "evidence: 401 packets" in alert["alert"]["metadata"]["tag"]
    assert drop["drop"] == {"reason": "syn_flood"}


def test_what_was_only_noted_is_an_alert_that_was_allowed():
    (noted,) = eve.lines(entry("verdict", "v", subject="203.0.113.0/24", reason="scan", origin="mast_cell"))

    assert valid(noted[1])["alert"]["action"] == "allowed"
    assert "src_ip" not in noted[1]
    assert "subject: 203.0.113.0/24" in noted[1]["alert"]["metadata"]["tag"]


def test_a_session_is_a_flow_with_its_community_id():
    ((_, flow),) = eve.lines(SESSION)

    assert valid(flow)["community_id"].startswith("1:")
    assert flow["flow"]["pkts_toserver"] == 12
    assert flow["flow"]["bytes_toclient"] == 2400
    assert flow["flow"]["age"] == 3


def test_anomalies_fit_too_and_the_nodes_own_life_goes_elsewhere():
    felt = Anomaly(mean=0.4, strange=3, judged=40, by="model", window_s=10.0, sieged=["tcp/80"])
    name, record = eve.anomaly_line(NOW, felt)

    assert name == eve.EVE
    assert "tcp/80" in valid(record)["anomaly"]["event"]
    for kind in ("posture", "tolerance", "release", "vaccine", "fingerprint"):
        ((name, record),) = eve.lines(entry(kind, "k", subject="203.0.113.7", reason="x"))
        assert name == eve.JOURNAL
        assert record["event_type"] == kind


hostile = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(
    [
        "reason",
        "origin",
        "reflex",
        "until_unix_s",
        "packets",
        "bytes",
        "source",
        "dest",
        "protocol",
        "lasted_s",
        "state",
    ]
)


@given(
    st.sampled_from(["ban", "verdict", "session", "posture", "antigen", "?"]), st.text(max_size=30), st.floats(),
    st.dictionaries(fields, hostile, max_size=6),
)  # fmt: skip
@example("session", "", 0.0, {"packets": [False, False]})
def test_whatever_a_sensor_recorded_makes_valid_lines(kind, subject, at, body):
    for name, record in eve.lines(entry(kind, "k", subject=subject, at=at, **body)):
        if name == eve.EVE:
            valid(record)


def test_a_file_is_bounded_and_each_line_is_whole(tmp_path):
    file = LineFile(tmp_path / "eve.json", 10_000)

    for number in range(1500):
        file.append([eve.encode({"n": number})])

    assert (tmp_path / "eve.json").stat().st_size <= 10_000
    assert (tmp_path / "eve.json.1").stat().st_size <= 10_000
    kept = [
        json.loads(line)["n"]
        for name in ("eve.json.1", "eve.json")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == list(range(kept[0], 1500))
    file.close()


def test_a_file_that_was_rotated_or_removed_is_begun_anew(tmp_path):
    file = LineFile(tmp_path / "eve.json", 1 << 20)
    file.append([b"one\n"])

    (tmp_path / "eve.json").rename(tmp_path / "eve.json-old")
    file.append([b"two\n"])
    (tmp_path / "eve.json").unlink()
    file.append([b"three\n"])

    assert (tmp_path / "eve.json-old").read_text() == "one\n"
    assert (tmp_path / "eve.json").read_text() == "three\n"
    file.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.kernel
def test_a_full_disk_costs_lines_and_never_half_a_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(disk)], check=True)
    try:
        file = LineFile(disk / "eve.json", 1 << 20)
        line = b"x" * 999 + b"\n"
        for _ in range(100):
            file.append([line])
        assert file.lost > 0
        assert (disk / "eve.json").stat().st_size % 1000 == 0

        (disk / "eve.json").unlink()
        file.append([line])

        assert (disk / "eve.json").read_bytes() == line
        file.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "eve.json").symlink_to(tmp_path / "elsewhere")
    file = LineFile(tmp_path / "eve.json", 1 << 20)

    file.append([b"one\n"])

    assert file.lost == 1
    assert not (tmp_path / "elsewhere").exists()


def test_the_memory_cell_writes_both_files(tmp_path):
    dish = Dish(MemoryCell, Settings(state_dir=tmp_path / "state", log_dir=tmp_path), name="memory_cell")
    dish.peer("permeability", Recorded)

    dish.give(Record(id=1, entries=[REFLEX, ban_entry(1), entry("posture", "p", posture="lockdown")]), "permeability")
    dish.give(Record(id=2, entries=[SESSION]), "permeability")
    assert dish.run_until(lambda: len(dish.sent(Recorded)) == 2)
    dish.peer("merkel", up=False)
    dish.stop()

    written = [json.loads(line) for line in (tmp_path / "eve.json").read_text().splitlines()]
    assert sorted(record["event_type"] for record in written) == ["alert", "alert", "drop", "flow"]
    own = [json.loads(line) for line in (tmp_path / "journal.json").read_text().splitlines()]
    assert {record["event_type"] for record in own} == {"cell", "posture"}


def test_timestamps_are_written_as_the_field_expects():
    assert eve.timestamp(1763887514.070748) == "2025-11-23T08:45:14.070748+0000"
    assert re.fullmatch(r"[\dT:.+-]+", eve.timestamp(float("nan")))
    assert eve.timestamp(time.time()).endswith("+0000")

"""Labels are matched by endpoints and time, and a broken label file is named with its line."""

from pathlib import Path

import numpy as np
import pytest

from ml.dataset import Table, TableError, concatenate
from ml.labels import Campaign, Labels, LabelsError, read_labels
from ml.metrics import campaign_names, measure
from tests.support.ml import made_up

OWN = np.zeros(0, "V16")


def labels_of(table: Table, family: list[str], campaigns: tuple[Campaign, ...] = ()) -> Labels:
    """One labelled flow per row, in turn of the given families."""
    names = np.resize(np.array(family), len(table))
    return Labels(names, np.arange(len(table)), campaigns)


def test_every_flow_of_the_made_up_site_finds_its_label() -> None:
    from ml.extract import extract

    site = made_up().folder
    table = extract(site / "test_mixed.pcap")

    labels = read_labels(table, site / "flow_labels.csv", site / "attack_windows.csv")

    assert (labels.flow_of_row >= 0).all()
    assert len(np.unique(labels.flow_of_row)) == len(labels.family)
    scan = labels.family[labels.flow_of_row] == "port_scan"
    assert (table.key["port"][scan][:, 0] == 40_000).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("t_first,t_last,src\n1,2,x\n", "line 2"),
        ("t_first,t_last,src,sport,dst,dport_or_icmp_type,proto,label,family\n1,2,here,1,::1,2,6,0,benign\n", "line 2"),
    ],
)
def test_a_label_file_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(content)

    with pytest.raises(LabelsError, match=words):
        read_labels(made_up().clean, tmp_path / "labels.csv", tmp_path / "none.csv")


def test_a_labelled_flow_that_was_never_seen_counts_as_missed() -> None:
    table = made_up().clean.rows(slice(0, 200))
    labels = labels_of(table, ["benign", "scan"])
    unseen = Labels(np.append(labels.family, ["scan"] * 100), labels.flow_of_row, ())

    result = measure(table, unseen, np.full(len(table), -4.0, "f4"), OWN)

    assert result.tpr["scan"] == (0.5, 0.5)
    assert result.fpr == (1.0, 1.0)


def test_families_weigh_the_same_however_many_flows_they_have() -> None:
    table = made_up().clean.rows(slice(0, 400))
    labels = labels_of(table, ["benign"] + ["flood"] * 9)
    labels.family[5] = "guess"
    log_p = np.where(labels.family == "flood", -3.5, -0.5).astype("f4")

    assert measure(table, labels, log_p, OWN).macro == (0.5, 0.5)


def test_campaigns_of_one_family_are_told_apart() -> None:
    runs = (Campaign("scan", 1, 2), Campaign("flood", 3, 4), Campaign("scan", 5, 6))

    assert campaign_names(Labels(np.array(["scan"]), np.zeros(0, "i8"), runs)) == ["scan", "flood", "scan #2"]


def test_a_table_survives_the_disk_and_another_schema_is_refused(tmp_path: Path) -> None:
    table = made_up().clean
    table.save(tmp_path / "t.npz")

    again = Table.load(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as file:
        content = dict(file)
    np.savez(tmp_path / "old.npz", **{**content, "schema": np.array("0" * 64)})

    assert np.array_equal(again.features, table.features)
    with pytest.raises(TableError, match="another feature schema"):
        Table.load(tmp_path / "old.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x80\x04\x95"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)

    with pytest.raises(TableError, match="no table"):
        Table.load(tmp_path / "t.npz")


def test_tables_that_are_joined_keep_their_flows_apart() -> None:
    table = made_up().clean.rows(slice(0, 100))

    joined = concatenate([table, table])

    assert len(np.unique(joined.flow_id)) == 2 * len(np.unique(table.flow_id))

"""The outbox: in order, at least once, and never doubled where keys are kept unique."""

from hypothesis import given
from hypothesis import strategies as st

from actors.dermis.outbox import RETRY_CAP_S, Outbox


class Journal:
    """Rows with a seq and a key, and one cursor for each sink."""

    def __init__(self, rows=0):
        self.rows = [{"seq": number + 1, "key": f"k{number}"} for number in range(rows)]
        self.cursors = {}

    def since(self, seq, limit=500):
        return [row for row in self.rows if row["seq"] > seq][:limit]

    def sent_to(self, sink):
        return self.cursors.get(sink, 0)

    def sent(self, sink, seq):
        self.cursors[sink] = seq


def test_everything_arrives_in_order():
    outbox, arrived = Outbox(Journal(25), "postgres"), []

    while (parcel := outbox.due(0.0, limit=10)) is not None:
        arrived += [entry["seq"] for entry in parcel.entries]
        outbox.acknowledged(parcel)

    assert arrived == list(range(1, 26))


def test_one_parcel_is_under_way_at_a_time():
    outbox = Outbox(Journal(25), "postgres")

    assert outbox.due(0.0, limit=10)
    assert outbox.due(0.0, limit=10) is None


def test_what_did_not_arrive_is_offered_again_after_a_growing_pause():
    outbox = Outbox(Journal(5), "postgres")

    pauses, now = [], 0.0
    for _ in range(9):
        parcel = outbox.due(now)
        pauses.append(outbox.failed(parcel, now))
        assert outbox.due(now + pauses[-1] - 0.1) is None
        now += pauses[-1]

    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == RETRY_CAP_S
    assert [entry["seq"] for entry in outbox.due(now).entries] == [1, 2, 3, 4, 5]


def test_a_success_forgets_the_failures():
    outbox = Outbox(Journal(5), "postgres")
    outbox.failed(outbox.due(0.0), 0.0)
    outbox.acknowledged(outbox.due(1.0))
    outbox._journal.rows.append({"seq": 6, "key": "k5"})

    assert outbox.failed(outbox.due(1.0), 1.0) == 1.0


def test_a_late_answer_to_an_earlier_parcel_changes_nothing():
    journal = Journal(5)
    outbox = Outbox(journal, "postgres")
    first = outbox.due(0.0, limit=2)
    outbox.failed(first, 0.0)

    outbox.acknowledged(first)

    assert journal.sent_to("postgres") == 0


def test_sinks_do_not_know_of_each_other():
    journal = Journal(5)
    fast, slow = Outbox(journal, "kafka"), Outbox(journal, "postgres")

    fast.acknowledged(fast.due(0.0))

    assert fast.due(0.0) is None
    assert len(slow.due(0.0).entries) == 5


@given(st.lists(st.sampled_from(["arrives", "lost on the way", "arrives, answer lost", "restart"])))
def test_a_sink_with_unique_keys_holds_every_entry_exactly_once(fates):
    journal, sink, now = Journal(20), [], 0.0
    outbox = Outbox(journal, "postgres")

    for fate in [*fates, *["arrives"] * 20]:
        now += 100.0
        parcel = outbox.due(now, limit=3)
        if parcel is None:
            continue
        if fate != "lost on the way":
            sink += [entry["key"] for entry in parcel.entries if entry["key"] not in sink]
        if fate == "arrives":
            outbox.acknowledged(parcel)
        elif fate == "restart":
            outbox = Outbox(journal, "postgres")
        else:
            outbox.failed(parcel, now)

    assert sink == [f"k{number}" for number in range(20)]

"""The journal's schema as a list of migrations, applied in order, each in one transaction.

``PRAGMA user_version`` counts those that were applied. A migration that was released is never changed: add another one.
The journal is the truth; ``bans``, ``posture`` and ``tolerance`` are what it adds up to, kept in the same transaction.
"""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE journal (
        seq     INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival; never used again, so that it serves as a cursor
        key     TEXT NOT NULL UNIQUE,               -- the same key twice is one row
        kind    TEXT NOT NULL,
        at      REAL NOT NULL,                      -- wall-clock seconds
        subject TEXT NOT NULL DEFAULT '',
        cell    TEXT NOT NULL DEFAULT '',           -- who recorded it
        body    BLOB NOT NULL                       -- msgpack map
    );
    CREATE INDEX journal_by_subject ON journal (subject, seq) WHERE subject <> '';
    CREATE INDEX journal_by_time ON journal (at);

    CREATE TABLE bans (
        subject TEXT PRIMARY KEY,
        at      REAL NOT NULL,
        until   REAL NOT NULL,                      -- 0: until released
        body    BLOB NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE tolerance (
        subject TEXT PRIMARY KEY,
        at      REAL NOT NULL,
        until   REAL NOT NULL,
        body    BLOB NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE posture (
        one  INTEGER PRIMARY KEY CHECK (one = 1),
        at   REAL NOT NULL,
        body BLOB NOT NULL
    );

    CREATE TABLE outbox (
        sink     TEXT PRIMARY KEY,                  -- a server beyond the node
        sent_seq INTEGER NOT NULL,                  -- everything up to here has arrived there
        at       REAL NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    INSERT INTO about VALUES ('epoch', lower(hex(randomblob(16))));
    """,
    """
    CREATE INDEX journal_by_kind ON journal (kind, seq);
    """,
    """
    CREATE TABLE many (                             -- entries about many subjects, until each has its row
        number   INTEGER PRIMARY KEY,               -- order of arrival
        key      TEXT NOT NULL UNIQUE,              -- the rows have the keys key:0, key:1 ...
        kind     TEXT NOT NULL,
        at       REAL NOT NULL,
        cell     TEXT NOT NULL,
        until    REAL NOT NULL,
        body     BLOB NOT NULL,
        subjects BLOB NOT NULL,                     -- 17 bytes each, see actors/core/packed.py
        done     INTEGER NOT NULL DEFAULT 0         -- so many have their rows
    );
    """,
)

"""Pages: which answers make up what is shown of the whole node, on the command line and over HTTP alike."""

#: Part of the status page → the verb that answers it.
STATUS_PARTS = {
    "node": "node",
    "cells": "cells",
    "posture": "posture.get",
    "qualia": "qualia",
    "reflex": "reflex.status",
    "nft": "nft.status",
    "memory": "memory.status",
    "feeds": "feeds.list",
    "throttle": "throttle.status",
}

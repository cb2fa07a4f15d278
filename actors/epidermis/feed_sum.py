"""The sum of all feeds, compiled again whenever one of them changes: one at a time, off the actor thread."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import numpy as np

from actors.core.cell import Cell
from actors.epidermis.blocklist import BlocklistError
from actors.epidermis.feed_health import Healthy, OwnNetworks
from actors.epidermis.feeds import BlocklistFiles, Compiled, compile_feeds

#: several feeds that change together are compiled once
GATHER_S = 0.2
#: a full disk is tried again by itself
WRITE_AGAIN_S = 30.0

Lists = list[tuple[str, Healthy]]


class FeedSum:
    """lists(): name and contents of every feed in force. own(): what must never be blocked, as of now.

    done(compiled, problem, remedy) on the actor thread, each time: either the result, which is on disk already, or why
    there is none; the files from before then stay as they are."""

    def __init__(
        self,
        cell: Cell,
        files: BlocklistFiles,
        lists: Callable[[], Lists],
        own: Callable[[], OwnNetworks],
        done: Callable[[Compiled | None, str, str], None],
    ) -> None:
        self._cell, self._files, self._lists, self._own, self._done = cell, files, lists, own, done
        self._random = np.random.default_rng(secrets.randbits(128))
        self._gathering = self._working = self._again = False

    def soon(self) -> None:
        """Compile in a moment, together with what else changes until then."""
        if not self._gathering:
            self._gathering = True
            self._cell.after(GATHER_S, self.now)

    def now(self) -> None:
        """Compile what is in force now; after the work in hand, when there is some."""
        self._gathering = False
        if self._working:
            self._again = True
            return
        self._working = True
        self._cell.call(self._in_a_thread, self._lists(), then=self._finished)

    async def _in_a_thread(self, lists: Lists) -> Compiled:
        return await asyncio.to_thread(self._work, lists)

    def _work(self, lists: Lists) -> Compiled:
        own = self._own() if lists else OwnNetworks()
        compiled = compile_feeds([(name, listed.v4, listed.v6) for name, listed in lists], own, self._random)
        self._files.write(compiled)
        return compiled

    def _finished(self, future: "Future[Compiled]") -> None:
        self._working = False
        try:
            self._done(future.result(), "", "")
        except CancelledError:
            return
        except BlocklistError as exc:
            self._done(None, str(exc), "switch a feed off; the lists from before stay in force")
        except OSError as exc:
            directory = self._files.directory
            self._done(None, f"the compiled lists cannot be written: {exc}", f"make room in {directory}")
            self._cell.after(WRITE_AGAIN_S, self.soon)
        if self._again:
            self._again = False
            self.soon()

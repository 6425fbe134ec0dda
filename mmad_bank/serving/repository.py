"""Models in memory: loaded on first use, reloaded when they change on disk, let go when others need the memory.

Whoever computes with a model holds a lease of it. A model is let go only while nobody has one, and a model that has
changed on disk is loaded beside the old one, which serves the leases that it has to their end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mmad_bank._internal.heap import give_back_freed_memory
from mmad_bank.errors import MmadBankError
from mmad_bank.serving.catalog import Catalog, Place, Signature
from mmad_bank.serving.models import VERSION, Card, Served
from mmad_bank.serving.problems import Problem

_AGAIN = 2.0  # seconds after which a model that could not be loaded is tried again, though its files look the same
_GOES_ON = "goes on as it was, what replaced it cannot be used"
_TRIMMED = 16  # models let go together give back their memory when they had this part of the budget
_MEASURED = 2  # uses after which a model's size is known: some of it is made by the first
Event = Callable[[str, str, float], None]
"""What happens to a model: ``loaded``, ``failed`` or ``dropped``; its name; the seconds that it took."""


@dataclass(eq=False)
class _Loaded:
    """A model in memory."""

    model: Served
    signature: Signature
    nbytes: int
    users: int = 0
    uses: int = 0
    used_at: int = 0


@dataclass
class _Slot:
    """What is known of a model, in memory or not."""

    name: str
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by whoever loads it
    loaded: _Loaded | None = None
    card: Card | None = None
    card_of: Signature | None = None
    nbytes: int = 0  # in memory, when it was there last
    unloaded: bool = False
    reason: str = ""
    failed: Signature | None = None
    failed_at: float = 0.0


class Repository:
    """The models of a catalog.

    Args:
        catalog: The catalog.
        load: Function that loads a model from its place.
        budget: Bytes that models in memory may take together.
        event: Function that is told what happens.
    """

    def __init__(
        self, catalog: Catalog, load: Callable[[Place], Served], budget: int, event: Event | None = None
    ) -> None:
        self.catalog = catalog
        self._load_place = load
        self._budget = budget
        self._event: Event = event or (lambda *_: None)
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._clock = 0
        self._loading = 0  # bytes of the models that are being loaded
        self._let_go = 0  # bytes of those that were let go since memory was given back

    # What others ask.

    @contextmanager
    def lease(self, name: str) -> Iterator[Served]:
        """Yield a model, as it is on disk now; it stays in memory until the block ends.

        Raises:
            Problem: There is no such model, it was unloaded, or it cannot be read; the line says which.
        """
        loaded = self._take(name)
        try:
            yield loaded.model
        finally:
            self._give_back(loaded)

    def known_card(self, name: str) -> Card | None:
        """Return a model's card without loading anything; None if it has to be loaded for that.

        Raises:
            Problem: There is no such model, or it was unloaded.
        """
        slot, place = self._slot(name)
        return slot.card if slot.card is not None and slot.card_of == place.signature() else None

    def card(self, name: str) -> Card:
        """Return a model's card; it is loaded if need be.

        Raises:
            Problem: As :meth:`lease`.
        """
        found = self.known_card(name)
        if found is not None:
            return found
        with self.lease(name) as model:
            return model.card

    def load(self, name: str) -> None:
        """Load a model now, also one that was unloaded.

        Raises:
            Problem: There is no such model, or it cannot be read; one that was loaded before goes on then.
        """
        slot, _ = self._slot(name, unloaded=True)
        was = slot.unloaded
        slot.unloaded, slot.failed = False, None
        try:
            with self.lease(name):
                pass
        except MmadBankError:
            slot.unloaded = was
            raise
        if slot.failed is not None:
            raise Problem(500, f"model: {slot.name} {_GOES_ON}: {slot.reason}")

    def unload(self, name: str) -> None:
        """Let a model go, and refuse requests for it until it is loaded again.

        Raises:
            Problem: There is no such model.
        """
        slot, _ = self._slot(name, unloaded=True)
        slot.unloaded, slot.reason = True, "unloaded"
        self._drop(slot)

    def index(self) -> list[dict[str, str]]:
        """Return all models with their states, as the protocol words them."""
        entries, names = [], self.catalog.names()
        with self._lock:
            for gone in set(self._slots).difference(names):
                del self._slots[gone]
        for name in names:
            slot = self._slots.get(name)
            state, reason = "READY", ""
            if slot is not None and (slot.unloaded or slot.failed is not None):
                state, reason = "UNAVAILABLE", slot.reason
                if slot.loaded is not None and not slot.unloaded:
                    state, reason = "READY", f"{_GOES_ON}: {reason}"
            kind = "bank" if self.catalog.is_bank(name) else "method"
            entries.append({"name": name, "version": VERSION, "state": state, "reason": reason, "kind": kind})
        return entries

    def resident(self) -> tuple[int, int]:
        """Return the number of models in memory, and their bytes."""
        with self._lock:
            there = [slot.loaded for slot in self._slots.values() if slot.loaded is not None]
        return len(there), sum(one.nbytes for one in there)

    # How it is done.

    def _slot(self, name: str, *, unloaded: bool = False) -> tuple[_Slot, Place]:
        place = self.catalog.find(name)
        if place is None:
            with self._lock:
                self._slots.pop(name, None)
            raise Problem(404, f"model: found none called {name[:100]!r}")
        with self._lock:
            slot = self._slots.setdefault(name, _Slot(name))
        if slot.unloaded and not unloaded:
            raise Problem(404, f"model: {name} is unloaded; POST /v2/repository/models/{name}/load loads it")
        return slot, place

    def _take(self, name: str) -> _Loaded:
        slot, place = self._slot(name)
        signature = place.signature()
        if signature is None:
            raise Problem(404, f"model: found none called {name[:100]!r}")
        found = self._in_memory(slot, signature)
        if found is not None:
            return found
        with slot.lock:
            return self._in_memory(slot, signature) or self._loaded_now(slot, place, signature)

    def _in_memory(self, slot: _Slot, signature: Signature | None) -> _Loaded | None:
        """Return a model that is there, with one more user; None if it is not, or is another (None: any) on disk."""
        with self._lock:
            loaded = slot.loaded
            if loaded is None or (signature is not None and loaded.signature != signature):
                return None
            self._clock += 1
            loaded.users, loaded.uses, loaded.used_at = loaded.users + 1, loaded.uses + 1, self._clock
            return loaded

    def _loaded_now(self, slot: _Slot, place: Place, signature: Signature) -> _Loaded:
        """Load a model; where its new state cannot be read, the old one goes on as long as it is in memory."""
        if slot.failed == signature and time.monotonic() - slot.failed_at < _AGAIN:
            return self._in_memory(slot, None) or self._fail(slot)
        begin = time.perf_counter()
        try:
            with self._room_for(slot.nbytes or place.bytes_on_disk()):  # it may vanish at any moment
                model = self._load_place(place)
            nbytes = model.nbytes
            if nbytes > self._budget:
                raise Problem(
                    503, f"{place.path}: takes {nbytes:,} bytes in memory, more than --memory {self._budget:,}"
                )
        except Exception as error:
            slot.failed, slot.failed_at, slot.reason = signature, time.monotonic(), _reason(error)
            self._event("failed", slot.name, time.perf_counter() - begin)
            return self._in_memory(slot, None) or self._fail(slot)
        slot.failed, slot.reason, slot.card, slot.card_of, slot.nbytes = None, "", model.card, signature, nbytes
        with self._lock:
            self._clock += 1
            loaded = _Loaded(model, signature, nbytes, users=1, uses=1, used_at=self._clock)
            if not slot.unloaded:  # meanwhile; whoever waited for it has it, nobody else
                slot.loaded = loaded
        self._make_room()
        self._event("loaded", slot.name, time.perf_counter() - begin)
        return loaded

    def _fail(self, slot: _Slot) -> Any:
        raise Problem(500, f"model: {slot.name} cannot be used: {slot.reason}")

    def _give_back(self, loaded: _Loaded) -> None:
        measured = loaded.uses <= _MEASURED
        nbytes = loaded.model.nbytes if measured else loaded.nbytes
        with self._lock:
            loaded.users -= 1
            loaded.nbytes = nbytes
        if measured:
            self._make_room()

    @contextmanager
    def _room_for(self, nbytes: int) -> Iterator[None]:
        """Make room for a model, and keep it while the model is loaded: others may be loaded at the same time."""
        with self._lock:
            self._loading += nbytes
        try:
            self._make_room()
            yield
        finally:
            with self._lock:
                self._loading -= nbytes

    def _make_room(self) -> None:
        """Let models go that nobody uses, the one that was used longest ago first, until the others fit the budget."""
        dropped = []
        with self._lock:
            there = [slot for slot in self._slots.values() if slot.loaded is not None]
            taken = sum(slot.loaded.nbytes for slot in there if slot.loaded) + self._loading
            for slot in sorted(there, key=lambda one: one.loaded.used_at if one.loaded else 0):
                if taken <= self._budget:
                    break
                if slot.loaded is not None and slot.loaded.users == 0:
                    taken -= slot.loaded.nbytes
                    dropped.append((slot.name, slot.loaded.nbytes))
                    slot.loaded = None
        self._went(dropped)

    def _drop(self, slot: _Slot) -> None:
        with self._lock:
            there, slot.loaded = slot.loaded, None
        if there is not None:
            nbytes = there.nbytes
            del there
            self._went([(slot.name, nbytes)])

    def _went(self, dropped: Sequence[tuple[str, int]]) -> None:
        """Tell of models that were let go, and give their memory back to the system now and then."""
        with self._lock:
            self._let_go += sum(nbytes for _, nbytes in dropped)
            full = self._let_go * _TRIMMED >= self._budget
            self._let_go = 0 if full else self._let_go
        if full:
            give_back_freed_memory()
        for name, _ in dropped:
            self._event("dropped", name, 0.0)


def _reason(error: Exception) -> str:
    """Return one line about an error."""
    words = str(error) if isinstance(error, MmadBankError) else f"{type(error).__name__}: {error}"
    with suppress(AttributeError):
        words = " ".join(words.split())
    return words[:500]

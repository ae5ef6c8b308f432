"""The arena: whatever the fragmentation, bytes that fit have a place, and nobody writes over anybody."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cidl_sim.executor.arena import PAGE, Arena, Slot, populating

CAPACITY_PAGES = 12


def pages_of(slot: Slot) -> set[int]:
    return {page for offset, length in slot.extents for page in range(offset // PAGE, (offset + length) // PAGE)}


def content(slot: Slot, seed: int) -> bytes:
    """Another byte for every page of the slot, so that a page that is seen twice shows."""
    return b"".join(bytes([(17 * seed + page) % 255 + 1]) * PAGE for page in range(slot.bytes // PAGE))


class ArenaMachine(RuleBasedStateMachine):
    """Takes, writes, gives back and trims in any order; every slot keeps its own content throughout."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(CAPACITY_PAGES * PAGE)
        self.seeds: dict[Slot, int] = {}
        self.taken = 0
        self.most_held = 0

    @property
    def held_bytes(self) -> int:
        return sum(slot.bytes for slot in self.seeds)

    @rule(target=slots, size=st.integers(0, CAPACITY_PAGES * PAGE))
    def take(self, size: int) -> Slot | None:
        needed = max(1, -(-size // PAGE)) * PAGE
        free = self.arena.capacity_bytes - self.held_bytes
        if needed > free:
            with pytest.raises(MemoryError, match="no room"):
                self.arena.take(size)
            return None
        slot = self.arena.take(size)
        assert slot.bytes == needed == sum(length for _, length in slot.extents)
        assert slot.address % PAGE == 0
        self.taken += 1
        slot.buffer()[:] = content(slot, self.taken)
        self.seeds[slot] = self.taken
        self.most_held = max(self.most_held, self.held_bytes)
        return slot

    @rule(slot=consumes(slots))
    def give_back(self, slot: Slot | None) -> None:
        if slot is not None:
            del self.seeds[slot]
            self.arena.give_back(slot)

    @rule(keep_bytes=st.integers(0, CAPACITY_PAGES * PAGE))
    def trim(self, keep_bytes: int) -> None:
        before = self.arena.touched_bytes
        self.arena.trim(keep_bytes)
        assert self.arena.touched_bytes <= max(self.held_bytes, keep_bytes)
        # No more is given up than whole pages ask for.
        assert self.arena.touched_bytes > min(before, keep_bytes) - PAGE

    @invariant()
    def every_slot_keeps_its_content(self) -> None:
        for slot, seed in self.seeds.items():
            assert bytes(slot.buffer()) == content(slot, seed)

    @invariant()
    def slots_share_no_page(self) -> None:
        pages = [page for slot in self.seeds for page in pages_of(slot)]
        assert len(pages) == len(set(pages))
        assert all(0 <= page < CAPACITY_PAGES for page in pages)

    @invariant()
    def what_is_held_counts_as_touched(self) -> None:
        assert self.held_bytes <= self.arena.touched_bytes <= self.arena.peak_touched_bytes
        # Fragmentation costs no memory: no page is touched that was not in use at the peak.
        assert self.arena.peak_touched_bytes == self.most_held

    def teardown(self) -> None:
        for slot in self.seeds:
            self.arena.give_back(slot)
        self.arena.close()


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@contextlib.contextmanager
def arena_of(pages: int) -> Iterator[Arena]:
    arena = Arena(pages * PAGE)
    try:
        yield arena
    finally:
        arena.close()


def fill(slot: Slot, value: int) -> None:
    slot.buffer()[:] = bytes([value]) * slot.bytes


def test_a_stitched_slot_is_contiguous():
    with arena_of(4) as arena:
        slots = [arena.take(PAGE) for _ in range(4)]
        for value, slot in enumerate(slots):
            fill(slot, value + 1)
        arena.give_back(slots[0])
        arena.give_back(slots[2])
        stitched = arena.take(2 * PAGE)
        stitched.buffer()[:] = content(stitched, 5)
        assert arena.stitched_slots == 1
        assert len(stitched.extents) == 2
        assert bytes(stitched.buffer()) == content(stitched, 5)
        assert bytes(slots[1].buffer()) == b"\2" * PAGE
        assert bytes(slots[3].buffer()) == b"\4" * PAGE
        arena.give_back(stitched)


def test_a_slot_is_stitched_only_where_no_hole_is_large_enough():
    with arena_of(5) as arena:
        first, second, third = arena.take(PAGE), arena.take(PAGE), arena.take(3 * PAGE)
        arena.give_back(first)
        arena.give_back(third)
        assert len(arena.take(3 * PAGE).extents) == 1
        assert arena.stitched_slots == 0
        arena.give_back(second)


def test_a_slot_is_stitched_from_touched_pages_where_a_hole_would_touch_new_ones():
    with arena_of(8) as arena:
        slots = [arena.take(PAGE) for _ in range(4)]
        arena.give_back(slots[0])
        arena.give_back(slots[2])
        assert pages_of(arena.take(2 * PAGE)) == {0, 2}
        assert pages_of(arena.take(2 * PAGE)) == {4, 5}
        assert arena.peak_touched_bytes == 6 * PAGE


def test_neighbouring_holes_grow_together():
    with arena_of(3) as arena:
        slots = [arena.take(PAGE) for _ in range(3)]
        for slot in (slots[1], slots[0], slots[2]):
            arena.give_back(slot)
        assert arena.take(3 * PAGE).extents == ((0, 3 * PAGE),)


def test_touched_pages_are_used_again_before_new_ones():
    with arena_of(8) as arena:
        arena.give_back(arena.take(2 * PAGE))
        arena.take(2 * PAGE)
        assert arena.touched_bytes == 2 * PAGE


def test_a_full_arena_says_what_did_not_fit():
    with arena_of(2) as arena:
        arena.take(PAGE)
        with pytest.raises(MemoryError, match=f"{2 * PAGE} bytes has no room for {2 * PAGE} more"):
            arena.take(PAGE + 1)
        arena.take(PAGE)


def test_trimmed_pages_go_back_to_the_kernel():
    with arena_of(4) as arena:
        kept, dropped = arena.take(PAGE), arena.take(3 * PAGE)
        fill(kept, 7)
        fill(dropped, 8)
        arena.give_back(dropped)
        arena.trim(0)
        assert arena.touched_bytes == PAGE
        assert bytes(kept.buffer()) == b"\7" * PAGE
        # The kernel hands out new pages as zeros: had it kept the old ones, they would still say 8.
        assert bytes(arena.take(3 * PAGE).buffer()) == bytes(3 * PAGE)


def test_trimming_leaves_what_may_stay():
    with arena_of(4) as arena:
        slot = arena.take(4 * PAGE)
        fill(slot, 8)
        arena.give_back(slot)
        arena.trim(3 * PAGE)
        assert arena.touched_bytes == 3 * PAGE
        assert bytes(arena.take(4 * PAGE).buffer()) == b"\10" * 3 * PAGE + bytes(PAGE)


def test_the_peak_remembers_what_was_trimmed():
    with arena_of(4) as arena:
        arena.give_back(arena.take(3 * PAGE))
        arena.trim(0)
        assert arena.touched_bytes == 0
        assert arena.peak_touched_bytes == 3 * PAGE


def test_sizes_are_rounded_up_to_pages():
    with arena_of(1) as arena:
        assert arena.capacity_bytes == PAGE
    arena = Arena(PAGE + 1)
    assert arena.capacity_bytes == 2 * PAGE
    arena.close()


def test_closing_twice_is_harmless():
    arena = Arena(PAGE)
    arena.close()
    arena.close()
    with arena_of(1) as other:
        fill(other.take(PAGE), 1)


def test_a_slot_is_fresh_until_its_pages_were_touched_and_after_they_were_trimmed():
    arena = Arena(4 * PAGE)
    first = arena.take(2 * PAGE)
    arena.give_back(first)
    again, larger = arena.take(2 * PAGE), arena.take(2 * PAGE)
    assert (first.is_fresh, again.is_fresh, larger.is_fresh) == (True, False, True)
    arena.give_back(again)
    arena.trim(2 * PAGE)
    assert arena.take(2 * PAGE).is_fresh
    arena.close()


def test_touching_ahead_leaves_what_the_caller_writes():
    arena = Arena(64 << 20)
    slot = arena.take(64 << 20)
    with populating(slot):
        slot.buffer()[:] = b"\x5a" * slot.bytes
    assert bytes(slot.buffer()) == b"\x5a" * slot.bytes
    arena.give_back(slot)
    arena.close()


def test_touching_ahead_ends_with_the_read_that_fails():
    arena = Arena(256 << 20)
    slot = arena.take(256 << 20)
    with pytest.raises(OSError, match="disk"), populating(slot):
        raise OSError("disk")
    assert not [thread for thread in threading.enumerate() if thread.name == "populate"]
    arena.give_back(slot)
    arena.close()


def test_pages_go_home_when_a_stitched_slot_is_given_back():
    with arena_of(6) as arena:
        slots = [arena.take(PAGE) for _ in range(6)]
        for value, slot in enumerate(slots):
            fill(slot, value + 1)
        for slot in slots[::2]:
            arena.give_back(slot)
        stitched = arena.take(3 * PAGE)
        assert bytes(stitched.buffer()) == b"".join(bytes([value]) * PAGE for value in (1, 3, 5))
        fill(stitched, 9)
        arena.give_back(stitched)
        again = arena.take(PAGE)
        assert bytes(again.buffer()) == b"\t" * PAGE
        for slot in (again, *slots[1::2]):
            arena.give_back(slot)
        # Pages that were moved apart are one piece again.
        whole = arena.take(6 * PAGE)
        assert len(whole.extents) == 1
        assert bytes(whole.buffer()) == b"".join(bytes([value]) * PAGE for value in (9, 2, 9, 4, 9, 6))


def test_a_large_arena_lies_in_huge_pages_where_the_system_has_them():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system has no transparent huge pages")
    arena = Arena(64 << 20)
    slot = arena.take(64 << 20)
    assert slot.address % (2 << 20) == 0
    fill(slot, 1)
    maps, held = Path("/proc/self/smaps").read_text().splitlines(), 0
    inside = False
    for line in maps:
        if "-" in line.split(" ", 1)[0]:
            start, _, end = line.split(" ", 1)[0].partition("-")
            inside = int(start, 16) <= slot.address < int(end, 16)
        elif inside and line.startswith("AnonHugePages:"):
            held = int(line.split()[1]) << 10
    arena.close()
    assert held > 32 << 20

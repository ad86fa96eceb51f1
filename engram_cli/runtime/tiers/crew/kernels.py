"""What the crew's threads do, without the interpreter: units of jobs, taken by tickets.

`control` int64 [BEDS + threads x LINE] is shared by all. Tickets are numbers that only grow; a job
owns those from BASE to END, a unit of `control[UNIT]` rows each. A thread takes the next ticket,
waits until a job that owns it is there, gathers the unit, and takes another. Whoever is through
with a job's last unit posts its semaphore. A job is written into a slot that nobody waits for; END
first becomes 0, so that no thread takes a half-written one for its own.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from engram_cli.hashing.jit import kernel
from engram_cli.runtime.tiers.crew.jit import (
    atomic_add,
    atomic_load,
    atomic_store,
    atomic_swap,
    call_with_event,
    call_with_event_and_stream,
    copy_bytes,
    copy_to_device,
    half_word_at,
    nanoseconds,
    pause,
    pointer,
    prefetch_at,
    sem_init,
    sem_post,
    sem_wait,
    word_at,
    yield_core,
)

LINE = 16  # words: what different threads write lies 128 bytes apart
TAKEN, PUBLISHED, STOPPED, LOCK, NEWEST, SPINS = (LINE * i for i in range(6))
PATIENCE, UNIT, AHEAD, THREADS = (SPINS + i for i in range(1, 5))
JOBS = 6 * LINE
SLOTS = 32
SLOT = 3 * LINE  # words of a job
END, BASE, SOURCE, STRIDE, HEIGHT, ROWS, ROW_BYTES, COUNT, TARGET = range(9)
DONE, WRONG, DOOR = LINE, LINE + 1, 2 * LINE
BEDS = JOBS + SLOTS * SLOT
ASLEEP, BED = 0, 1  # of a line of one thread

# A load: the fields of a job (SOURCE to TARGET, ROWS being where the number of rows stands, and
# then they), the event to wait for, that to record, and what became of it.
FOUND, COPIED, DROPPED = range(TARGET + 1, TARGET + 4)
FAILED, OUTSIDE, FINDING, GATHERING, COPYING, ARRIVED, KNOCK = range(TARGET + 4, TARGET + 11)
LOAD = KNOCK + 4

# A courier's desk: its ring and stream, the driver's functions, and the addresses of loads.
STREAM, COPY, RECORD, SYNCHRONIZE, RING, BUFFER_BYTES, SENT = range(7)
POSTED, FETCHED, HOME = (LINE * i for i in range(1, 4))
LETTERS = 4 * LINE
MOST_LETTERS = 256
DESK = LETTERS + MOST_LETTERS

_CACHE_LINE = 64  # bytes
_YIELD = 64  # spins between two offers of the core


@kernel()
def _is_published(control, ticket, mine):
    """Wait for a job with this ticket; False at the end."""
    spins = 0
    while atomic_load(control, PUBLISHED) <= ticket:
        if atomic_load(control, STOPPED) != 0:
            return False
        spins += 1
        if spins <= control[SPINS]:
            pause()
            if spins % _YIELD == 0:
                yield_core()
            continue
        atomic_store(control, mine + ASLEEP, 1)
        # Whoever publishes after this look sees that this thread sleeps.
        if atomic_load(control, PUBLISHED) <= ticket and atomic_load(control, STOPPED) == 0:
            sem_wait(control, mine + BED)
        spins = 0
    return True


@kernel()
def _wake(control):
    for number in range(control[THREADS]):
        bed = BEDS + number * LINE
        if atomic_swap(control, bed + ASLEEP, 0) != 0:
            sem_post(control, bed + BED)


@kernel()
def _slot_of(control, ticket):
    """The slot whose job owns a published ticket. END is read first: see the module."""
    while True:
        newest = control[NEWEST]
        for i in range(SLOTS):
            slot = JOBS + (newest + SLOTS - i) % SLOTS * SLOT
            end = atomic_load(control, slot + END)
            if atomic_load(control, slot + BASE) <= ticket and ticket < end:
                return slot


@kernel()
def _row_at(rows, size, i):
    if size == 4:
        return half_word_at(rows + 4 * i)
    return word_at(rows + 8 * i)


@kernel()
def _gather(control, slot, unit):
    """Copy the records of a unit's rows; those of rows outside the table are left and counted."""
    source, stride, height = control[slot + SOURCE], control[slot + STRIDE], control[slot + HEIGHT]
    rows, size, target = control[slot + ROWS], control[slot + ROW_BYTES], control[slot + TARGET]
    ahead = control[AHEAD]
    first = unit * control[UNIT]
    last = min(first + control[UNIT], control[slot + COUNT])
    for i in range(first, last + ahead):
        if i < last:
            row = _row_at(rows, size, i)
            if 0 <= row < height:
                record = source + row * stride
                for line in range(0, stride, _CACHE_LINE):
                    prefetch_at(record + line)
        j = i - ahead
        if j >= first:
            row = _row_at(rows, size, j)
            if 0 <= row < height:
                copy_bytes(target + j * stride, source + row * stride, stride)
            else:
                atomic_add(control, slot + WRONG, 1)


@kernel("void(int64[::1])")
def prepare(control):
    """Make the semaphores; `control` is 0 but for its settings."""
    for number in range(control[THREADS]):
        sem_init(control, BEDS + number * LINE + BED)
    for number in range(SLOTS):
        sem_init(control, JOBS + number * SLOT + DOOR)


@kernel("void(int64[::1], int64)")
def serve(control, number):
    """What a thread of the crew does until `stop`."""
    mine = BEDS + number * LINE
    while True:
        ticket = atomic_add(control, TAKEN, 1)
        if not _is_published(control, ticket, mine):
            return
        slot = _slot_of(control, ticket)
        units = control[slot + END] - control[slot + BASE]
        _gather(control, slot, ticket - control[slot + BASE])
        if atomic_add(control, slot + DONE, 1) + 1 == units:
            sem_post(control, slot + DOOR)


@kernel("void(int64[::1])")
def stop(control):
    """Let the threads end; jobs that are not done are left."""
    atomic_store(control, STOPPED, 1)
    _wake(control)


@kernel("void(int64[::1], int64, int64[::1])")
def submit(control, slot, job):
    """Publish a job, END and BASE aside, in a free slot."""
    while atomic_swap(control, LOCK, 1) != 0:
        yield_core()
    atomic_store(control, slot + END, 0)
    for field in range(SOURCE, TARGET + 1):
        control[slot + field] = job[field]
    control[slot + WRONG] = 0
    base = atomic_load(control, PUBLISHED)
    end = base + (job[COUNT] + control[UNIT] - 1) // control[UNIT]
    atomic_store(control, slot + DONE, 0)
    atomic_store(control, slot + BASE, base)
    atomic_store(control, slot + END, end)
    control[NEWEST] = (slot - JOBS) // SLOT
    atomic_store(control, PUBLISHED, end)
    _wake(control)
    atomic_store(control, LOCK, 0)


@kernel("int64(int64[::1], int64)")
def finish(control, slot):
    """Wait until the job in a slot is done; how many of its rows are outside the table."""
    units = control[slot + END] - control[slot + BASE]
    spins = 0
    while atomic_load(control, slot + DONE) < units:
        spins += 1
        if spins > control[PATIENCE]:
            sem_wait(control, slot + DOOR)
        else:
            pause()
    return atomic_load(control, slot + WRONG)


@kernel()
def _carry(control, desk, slots, events, load, rows, count):
    """Gather rows of a load buffer by buffer, and have each copied to the device."""
    stride, size = load[STRIDE], load[ROW_BYTES]
    step = desk[BUFFER_BYTES] // stride
    parts = (count + step - 1) // step
    depth = len(slots)
    job = load[: TARGET + 1].copy()
    for part in range(parts + depth - 1):
        if part < parts:
            buffer = (desk[SENT] + part) % len(events)
            begin = nanoseconds()
            code = call_with_event(desk[SYNCHRONIZE], events[buffer])
            load[COPYING] += nanoseconds() - begin
            if load[FAILED] == 0:
                load[FAILED] = code
            job[ROWS] = rows + part * step * size
            job[COUNT] = min(step, count - part * step)
            job[TARGET] = desk[RING] + buffer * desk[BUFFER_BYTES]
            submit(control, slots[part % depth], job)
        ready = part - (depth - 1)
        if ready >= 0:
            begin = nanoseconds()
            load[OUTSIDE] += finish(control, slots[ready % depth])
            load[GATHERING] += nanoseconds() - begin
            if load[FAILED] == 0:
                buffer = (desk[SENT] + ready) % len(events)
                source = desk[RING] + buffer * desk[BUFFER_BYTES]
                target = load[TARGET] + ready * step * stride
                many = min(step, count - ready * step) * stride
                load[FAILED] = _send(desk, target, source, many, events[buffer])
    desk[SENT] += parts


@kernel()
def _send(desk, target, source, size, event):
    code = copy_to_device(desk[COPY], target, source, size, desk[STREAM])
    if code == 0:
        code = call_with_event_and_stream(desk[RECORD], event, desk[STREAM])
    return code


@kernel()
def _deliver(control, desk, slots, events, load):
    """See a load through: its row numbers, its records, its mark."""
    begin = nanoseconds()
    _wake(control)  # while the device still finds the rows
    load[FAILED] = call_with_event(desk[SYNCHRONIZE], load[FOUND])
    load[FINDING] = nanoseconds() - begin
    if load[FAILED] == 0 and atomic_load(load, DROPPED) == 0:
        size = load[ROW_BYTES]
        load[COUNT] = _row_at(load[ROWS], size, 0)
        _carry(control, desk, slots, events, load, load[ROWS] + size, load[COUNT])
        if load[FAILED] == 0:
            load[FAILED] = call_with_event_and_stream(desk[RECORD], load[COPIED], desk[STREAM])
    sem_post(load, KNOCK)
    atomic_store(load, ARRIVED, 1)  # from here on the load may be gone


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def run_errands(control, desk, slots, events):
    """What a courier does until a load at address 0: one load after another.

    `slots` int64, free ones, no more than there are buffers; `events` one a buffer of the ring,
    recorded behind the copy that reads it.
    """
    while True:
        number = desk[FETCHED]
        spins = 0
        while atomic_load(desk, POSTED) <= number:
            spins += 1
            if spins <= control[SPINS]:
                pause()
                if spins % _YIELD == 0:
                    yield_core()
                continue
            atomic_store(desk, HOME + ASLEEP, 1)
            if atomic_load(desk, POSTED) <= number:
                sem_wait(desk, HOME + BED)
            spins = 0
        address = desk[LETTERS + number % MOST_LETTERS]
        if address == 0:
            return
        _deliver(control, desk, slots, events, carray(pointer(address), LOAD, np.int64))
        atomic_store(desk, FETCHED, number + 1)


@kernel("void(int64[::1])")
def open_desk(desk):
    """Make a courier's semaphore; its desk is 0 but for its fields."""
    sem_init(desk, HOME + BED)


@kernel("void(int64[::1], int64)")
def post(desk, address):
    """Give a courier the address of a load, 0 to end it; by one thread at a time."""
    number = desk[POSTED]
    while number - atomic_load(desk, FETCHED) >= MOST_LETTERS:
        yield_core()
    desk[LETTERS + number % MOST_LETTERS] = address
    atomic_store(desk, POSTED, number + 1)
    if atomic_swap(desk, HOME + ASLEEP, 0) != 0:
        sem_post(desk, HOME + BED)


@kernel("void(int64[::1])")
def address_to(load):
    """Make a load's semaphore; it is 0 but for its fields."""
    sem_init(load, KNOCK)


@kernel("void(int64[::1], int64)")
def await_arrival(load, patience):
    """Wait until a courier is through with a load."""
    spins = 0
    while atomic_load(load, ARRIVED) == 0:
        spins += 1
        if spins == patience:
            sem_wait(load, KNOCK)
        pause()

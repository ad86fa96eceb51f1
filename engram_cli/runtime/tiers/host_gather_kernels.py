"""The loops of the gather threads and of the copy thread, compiled by Numba to run without Python.

`control` int64 [SLEEP_SLOTS + threads x LINE] is shared by all threads. A job is split into units
of `control[UNIT]` rows. Units have tickets, numbers that only grow: a job owns those from BASE to
END. A thread takes the next ticket, waits until a job that owns it is published, gathers the unit,
and takes another. The thread that finishes a job's last unit posts its semaphore. A job is written
to a slot that no other job uses; END is set to 0 first, so that no thread takes a half-written job.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from engram_cli.jit import kernel
from engram_cli.runtime.tiers.host_gather_jit import (
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

LINE = 16  # words of 8 bytes: words that different threads write are 128 bytes apart
TAKEN, PUBLISHED, STOPPED, LOCK, NEWEST, SPINS = (LINE * i for i in range(6))
CALLER_SPINS, UNIT, AHEAD, THREADS = (SPINS + i for i in range(1, 5))
JOBS = 6 * LINE
SLOTS = 32
SLOT = 3 * LINE  # words of a job
END, BASE, SOURCE, STRIDE, HEIGHT, ROWS, ROW_BYTES, COUNT, TARGET = range(9)
DONE, WRONG, DONE_SEMAPHORE = LINE, LINE + 1, 2 * LINE
SLEEP_SLOTS = JOBS + SLOTS * SLOT
ASLEEP, SLEEP_SEMAPHORE = 0, 1  # of a thread's sleep slot

# A load: the fields of a job (SOURCE to TARGET; ROWS is the address of the count of rows, followed
# by the rows), the event to wait for, the event to record, and the results.
FOUND, COPIED, DROPPED = range(TARGET + 1, TARGET + 4)
FAILED, OUTSIDE, FINDING, GATHERING, COPYING, FINISHED, WAKE_SEMAPHORE = range(
    TARGET + 4, TARGET + 11
)
LOAD = WAKE_SEMAPHORE + 4

# The queue of a copy thread: its ring and stream, the driver's functions, and addresses of loads.
STREAM, COPY, RECORD, SYNCHRONIZE, RING, BUFFER_BYTES, SENT = range(7)
POSTED, FETCHED, OWN_SLEEP_SLOT = (LINE * i for i in range(1, 4))
ENTRIES = 4 * LINE
MAX_ENTRIES = 256
QUEUE = ENTRIES + MAX_ENTRIES

_CACHE_LINE = 64  # bytes
_YIELD = 64  # spins between two calls of sched_yield


@kernel()
def _is_published(control, ticket, mine):
    """Wait for a job with this ticket; False after `stop`."""
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
        # A thread that publishes after this load sees that this thread sleeps.
        if atomic_load(control, PUBLISHED) <= ticket and atomic_load(control, STOPPED) == 0:
            sem_wait(control, mine + SLEEP_SEMAPHORE)
        spins = 0
    return True


@kernel()
def _wake(control):
    for number in range(control[THREADS]):
        slot = SLEEP_SLOTS + number * LINE
        if atomic_swap(control, slot + ASLEEP, 0) != 0:
            sem_post(control, slot + SLEEP_SEMAPHORE)


@kernel()
def _slot_of(control, ticket):
    """Return the slot whose job owns a published ticket. END is read first: see the module."""
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
    """Copy the records of a unit's rows; rows outside the table are skipped and counted."""
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
    """Initialise the semaphores; `control` is 0 except for its settings."""
    for number in range(control[THREADS]):
        sem_init(control, SLEEP_SLOTS + number * LINE + SLEEP_SEMAPHORE)
    for number in range(SLOTS):
        sem_init(control, JOBS + number * SLOT + DONE_SEMAPHORE)


@kernel("void(int64[::1], int64)")
def serve(control, number):
    """Run a thread of the pool until `stop`."""
    mine = SLEEP_SLOTS + number * LINE
    while True:
        ticket = atomic_add(control, TAKEN, 1)
        if not _is_published(control, ticket, mine):
            return
        slot = _slot_of(control, ticket)
        units = control[slot + END] - control[slot + BASE]
        _gather(control, slot, ticket - control[slot + BASE])
        if atomic_add(control, slot + DONE, 1) + 1 == units:
            sem_post(control, slot + DONE_SEMAPHORE)


@kernel("void(int64[::1])")
def stop(control):
    """Let the threads end; unfinished jobs stay unfinished."""
    atomic_store(control, STOPPED, 1)
    _wake(control)


@kernel("void(int64[::1], int64, int64[::1])")
def submit(control, slot, job):
    """Publish a job in a free slot; END and BASE are set here."""
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
    """Wait until the job in a slot is done; return how many of its rows are outside the table."""
    units = control[slot + END] - control[slot + BASE]
    spins = 0
    while atomic_load(control, slot + DONE) < units:
        spins += 1
        if spins > control[CALLER_SPINS]:
            sem_wait(control, slot + DONE_SEMAPHORE)
        else:
            pause()
    return atomic_load(control, slot + WRONG)


@kernel()
def _copy_records(control, queue, slots, events, load, rows, count):
    """Gather the rows of a load buffer by buffer, and launch the copy of each to the device."""
    stride, size = load[STRIDE], load[ROW_BYTES]
    step = queue[BUFFER_BYTES] // stride
    parts = (count + step - 1) // step
    depth = len(slots)
    job = load[: TARGET + 1].copy()
    for part in range(parts + depth - 1):
        if part < parts:
            buffer = (queue[SENT] + part) % len(events)
            begin = nanoseconds()
            code = call_with_event(queue[SYNCHRONIZE], events[buffer])
            load[COPYING] += nanoseconds() - begin
            if load[FAILED] == 0:
                load[FAILED] = code
            job[ROWS] = rows + part * step * size
            job[COUNT] = min(step, count - part * step)
            job[TARGET] = queue[RING] + buffer * queue[BUFFER_BYTES]
            submit(control, slots[part % depth], job)
        ready = part - (depth - 1)
        if ready >= 0:
            begin = nanoseconds()
            load[OUTSIDE] += finish(control, slots[ready % depth])
            load[GATHERING] += nanoseconds() - begin
            if load[FAILED] == 0:
                buffer = (queue[SENT] + ready) % len(events)
                source = queue[RING] + buffer * queue[BUFFER_BYTES]
                target = load[TARGET] + ready * step * stride
                many = min(step, count - ready * step) * stride
                load[FAILED] = _send(queue, target, source, many, events[buffer])
    queue[SENT] += parts


@kernel()
def _send(queue, target, source, size, event):
    code = copy_to_device(queue[COPY], target, source, size, queue[STREAM])
    if code == 0:
        code = call_with_event_and_stream(queue[RECORD], event, queue[STREAM])
    return code


@kernel()
def _process_load(control, queue, slots, events, load):
    """Process a load: wait for its row numbers, copy its records, record its event."""
    begin = nanoseconds()
    _wake(control)  # while the device still computes the row numbers
    load[FAILED] = call_with_event(queue[SYNCHRONIZE], load[FOUND])
    load[FINDING] = nanoseconds() - begin
    if load[FAILED] == 0 and atomic_load(load, DROPPED) == 0:
        size = load[ROW_BYTES]
        load[COUNT] = _row_at(load[ROWS], size, 0)
        _copy_records(control, queue, slots, events, load, load[ROWS] + size, load[COUNT])
        if load[FAILED] == 0:
            load[FAILED] = call_with_event_and_stream(queue[RECORD], load[COPIED], queue[STREAM])
    sem_post(load, WAKE_SEMAPHORE)
    atomic_store(load, FINISHED, 1)  # the load may be freed from here on


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def run_queue(control, queue, slots, events):
    """Run a copy thread: process one load after another, until the address 0.

    `slots` int64 are free slots, no more than there are buffers. `events` has one event for each
    buffer of the ring, recorded after the copy from it.
    """
    while True:
        number = queue[FETCHED]
        spins = 0
        while atomic_load(queue, POSTED) <= number:
            spins += 1
            if spins <= control[SPINS]:
                pause()
                if spins % _YIELD == 0:
                    yield_core()
                continue
            atomic_store(queue, OWN_SLEEP_SLOT + ASLEEP, 1)
            if atomic_load(queue, POSTED) <= number:
                sem_wait(queue, OWN_SLEEP_SLOT + SLEEP_SEMAPHORE)
            spins = 0
        address = queue[ENTRIES + number % MAX_ENTRIES]
        if address == 0:
            return
        _process_load(control, queue, slots, events, carray(pointer(address), LOAD, np.int64))
        atomic_store(queue, FETCHED, number + 1)


@kernel("void(int64[::1])")
def init_queue(queue):
    """Initialise the semaphore of a queue, which is 0 except for its fields."""
    sem_init(queue, OWN_SLEEP_SLOT + SLEEP_SEMAPHORE)


@kernel("void(int64[::1], int64)")
def post(queue, address):
    """Append the address of a load, or 0 to end the copy thread; callers must hold a lock."""
    number = queue[POSTED]
    while number - atomic_load(queue, FETCHED) >= MAX_ENTRIES:
        yield_core()
    queue[ENTRIES + number % MAX_ENTRIES] = address
    atomic_store(queue, POSTED, number + 1)
    if atomic_swap(queue, OWN_SLEEP_SLOT + ASLEEP, 0) != 0:
        sem_post(queue, OWN_SLEEP_SLOT + SLEEP_SEMAPHORE)


@kernel("void(int64[::1])")
def init_load(load):
    """Initialise the semaphore of a load, which is 0 except for its fields."""
    sem_init(load, WAKE_SEMAPHORE)


@kernel("void(int64[::1], int64)")
def wait_for_load(load, max_spins):
    """Wait until a copy thread has processed a load."""
    spins = 0
    while atomic_load(load, FINISHED) == 0:
        spins += 1
        if spins == max_spins:
            sem_wait(load, WAKE_SEMAPHORE)
        pause()

"""What the crew's threads do, without the interpreter: units of jobs, taken by tickets.

`control` int64 [BEDS + threads x LINE], shared by all. Tickets are numbers that only grow; a job
owns those from BASE to END, a unit of `control[UNIT]` rows each. A thread takes the next ticket,
waits until a job that owns it is there, gathers the unit, and takes another. Whoever is through
with a job's last unit posts its semaphore. A job is written into a slot that nobody waits for; END
first becomes 0, so that no thread takes a half-written one for its own.
"""

from __future__ import annotations

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
    prefetch_at,
    sem_init,
    sem_post,
    sem_wait,
    word_at,
    yield_core,
)

LINE = 16  # words: what different threads write lies 128 bytes apart
TAKEN, PUBLISHED, STOPPED, LOCK, SPINS = (LINE * i for i in range(5))
PATIENCE, UNIT, AHEAD, THREADS = (SPINS + i for i in range(1, 5))
JOBS = 5 * LINE
SLOTS = 16
SLOT = 3 * LINE  # words of a job
END, BASE, SOURCE, STRIDE, HEIGHT, ROWS, ROW_BYTES, COUNT, TARGET = range(9)
DONE, WRONG, DOOR = LINE, LINE + 1, 2 * LINE
BEDS = JOBS + SLOTS * SLOT
ASLEEP, BED = 0, 1  # of a thread's line

# What `carry` is given and leaves, after the fields of a job.
STREAM, COPY, RECORD, SYNCHRONIZE, RING, BUFFER_BYTES, SENT = range(TARGET + 1, TARGET + 8)
FAILED, OUTSIDE, GATHERING, COPYING = range(TARGET + 8, TARGET + 12)
LOAD = TARGET + 12

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
        for number in range(SLOTS):
            slot = JOBS + number * SLOT
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


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def carry(control, slots, load, events):
    """Gather the rows of `load` buffer by buffer, and have each copied to the device.

    `slots` int64, free ones, no more than there are buffers; `events` one a buffer, recorded behind
    the copy that reads it.
    Left in `load`: SENT, copies since the start; OUTSIDE, rows outside the table; FAILED, the first
    error of CUDA, after which nothing is copied; GATHERING and COPYING, nanoseconds waited for
    gathers, and for copies.
    """
    stride, count, target = load[STRIDE], load[COUNT], load[TARGET]
    step = load[BUFFER_BYTES] // stride
    parts = (count + step - 1) // step
    depth = len(slots)
    job = load.copy()
    for part in range(parts + depth - 1):
        if part < parts:
            buffer = (load[SENT] + part) % len(events)
            begin = nanoseconds()
            code = call_with_event(load[SYNCHRONIZE], events[buffer])
            load[COPYING] += nanoseconds() - begin
            if load[FAILED] == 0:
                load[FAILED] = code
            job[ROWS] = load[ROWS] + part * step * load[ROW_BYTES]
            job[COUNT] = min(step, count - part * step)
            job[TARGET] = load[RING] + buffer * load[BUFFER_BYTES]
            submit(control, slots[part % depth], job)
        ready = part - (depth - 1)
        if ready >= 0:
            begin = nanoseconds()
            load[OUTSIDE] += finish(control, slots[ready % depth])
            load[GATHERING] += nanoseconds() - begin
            buffer = (load[SENT] + ready) % len(events)
            size = min(step, count - ready * step) * stride
            source = load[RING] + buffer * load[BUFFER_BYTES]
            if load[FAILED] == 0:
                code = copy_to_device(
                    load[COPY], target + ready * step * stride, source, size, load[STREAM]
                )
                if code == 0:
                    code = call_with_event_and_stream(load[RECORD], events[buffer], load[STREAM])
                load[FAILED] = code
    load[SENT] += parts

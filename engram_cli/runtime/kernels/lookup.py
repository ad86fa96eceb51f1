"""The look-up as one Triton kernel: raw token ids in, rows or their dequantised vectors out.

A program serves BLOCK_T tokens and BLOCK_C columns of one layer. Each of its R = BLOCK_T x BLOCK_C
lanes computes one row: it reads the ids of an n-gram, maps and limits them, mixes them and takes
the modulus; then the program copies R rows. Rows equal those of `lookup_reference` to the bit.

Rows may be distributed over several GPUs (`sharding.owners`): each lane then finds the owner of its
row, and loads it from that GPU's memory over NVLink.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engram_cli.runtime.kernels.places import count_rows, locate, of_layer

GROUP = tl.constexpr(32)
# An e4m3 exponent placed in a float32 counts from 127 instead of 7: 2**120 makes up for it, and
# makes subnormals normal.
_REBIAS = tl.constexpr(1.329227995784916e36)

# Values that change from call to call must not each have a kernel compiled for them.
_PLAIN_NUMBERS = ["count", "run", "sequences", "steps", "row_stride", "column_stride"]
_PLAIN_NUMBERS += ["vocab", "filler", "eos", "ring", "rank"]


@triton.jit
def _find_sequence(t, bounds, sequences, steps):
    """Return the sequence that holds flat token `t`, by bisection of `bounds` [sequences + 1]."""
    low = t * 0
    high = t * 0 + sequences - 1
    for _ in range(steps):
        middle = (low + high) // 2
        beyond = (tl.load(bounds + middle + 1) <= t) & (low < high)
        low = tl.where(beyond, middle + 1, low)
        high = tl.where(beyond, high, middle)
    return low


@triton.jit
def _modulo(mix, modulus, magic):
    """Return `mix` int64 modulo `modulus` in 2..2**32; `magic` is (2**64 - 1) // modulus.

    For u < 2**63 the high half of u x magic is u // modulus or one less, so one correction is
    exact; -1 - u has the remainder modulus - 1 - (u % modulus).
    """
    negative = mix >> 63
    positive = mix ^ negative
    quotient = tl.umulhi(positive.to(tl.uint64), magic.to(tl.uint64)).to(tl.int64)
    rest = positive - quotient * modulus
    rest = tl.where(rest >= modulus, rest - modulus, rest)
    return tl.where(negative != 0, modulus - 1 - rest, rest)


@triton.jit
def _e4m3(raw):
    """Return float32 of e4m3 bytes by integer operations, which every GPU has."""
    low = raw.to(tl.int32) & 0x7F
    sign = (raw.to(tl.int32) & 0x80) << 24
    value = (sign | (low << 20)).to(tl.float32, bitcast=True) * _REBIAS
    return tl.where(low == 0x7F, float("nan"), value)


@triton.jit
def _e8m0(raw):
    """Return float32 of e8m0 bytes: 2**(byte - 127), NaN for 255."""
    byte = raw.to(tl.int32)
    bits = tl.where(byte == 0, 0x00400000, byte << 23)
    return tl.where(byte == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def columns_of(chunk, live, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the columns [1, D] of a chunk, and which of the values [R, D] there are."""
    column = chunk * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    valid = live[:, None]
    if DIM % BLOCK_D != 0:
        valid = valid & (column < DIM)
    return column, valid


@triton.jit
def groups_of(chunk, live, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the groups [1, G] of a chunk, and which of the scales [R, G] there are."""
    group = chunk * (BLOCK_D // GROUP) + tl.arange(0, BLOCK_D // GROUP)[None, :]
    return group, live[:, None] & (group < DIM // GROUP)


@triton.jit
def deliver(
    out,
    target,
    live,
    raw,
    factor,
    chunk,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dequantise in float32, round once, and write R rows to `target` int64[R].

    `raw` [R, D] are stored values, `factor` their scales: [R, G], [R] or one.
    """
    column, valid = columns_of(chunk, live, DIM, BLOCK_D)
    value = raw
    if KIND != "raw":
        value = _e4m3(raw) if BITS else raw.to(tl.float32)
    if KIND == "grouped":
        each = tl.broadcast_to(_e8m0(factor)[:, :, None], [factor.shape[0], factor.shape[1], GROUP])
        value = value * each.reshape(value.shape)
    if KIND == "scaled":
        value = value * factor
    if KIND == "per-row":
        value = tl.where(raw == -128, float("nan"), value) * factor[:, None]
    tl.store(out + target[:, None] * DIM + column, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def copy_rows(
    out,
    target,
    live,
    rows,
    table,
    scale,
    begin,
    scale_begin,
    DIM: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    ONCE: tl.constexpr,
    SHARDS: tl.constexpr,
    SCALES_HERE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Load, dequantise and write rows int64[R] of a table, to `target` int64[R].

    With SHARDS each row has its own address, `begin` int64[R], and unless SCALES_HERE its scales
    have, too, `scale_begin`; addresses are multiples of ALIGNED.
    """
    for chunk in tl.static_range(CHUNKS):
        within, valid = columns_of(chunk, live, DIM, BLOCK_D)
        # VECTOR values a thread are one load and one store of at most 16 bytes, in one layout.
        if SHARDS:
            address = tl.multiple_of(begin[:, None].to(table.dtype) + within, [1, ALIGNED])
        else:
            address = table + rows[:, None] * TABLE_STRIDE + within
        address = tl.max_contiguous(address, [1, VECTOR])
        if ONCE:
            raw = tl.load(address, mask=valid, eviction_policy="evict_first")
        else:
            raw = tl.load(address, mask=valid)
        factor = rows
        if KIND == "grouped":
            group, present = groups_of(chunk, live, DIM, BLOCK_D)
            if SCALES_HERE:
                address = scale + rows[:, None] * SCALE_STRIDE + group
            else:
                address = scale_begin[:, None].to(scale.dtype) + group
            factor = tl.load(address, mask=present, other=0)
        if KIND == "scaled":
            factor = tl.load(scale)
        if KIND == "per-row":
            own = scale + rows * SCALE_STRIDE if SCALES_HERE else scale_begin.to(scale.dtype)
            factor = tl.load(own, mask=live, other=0)
        deliver(out, target, live, raw, factor, chunk, DIM, KIND, BITS, BLOCK_D)


@triton.jit(do_not_specialize=_PLAIN_NUMBERS)
def lookup_kernel(
    out,  # [LAYERS, count, C, DIM], or int64 [LAYERS, count, C] where KIND is rows
    ids,  # [B, T] by strides, or flat
    vocabulary,  # [vocab]
    multipliers,  # int64 [LAYERS, O, N]
    columns,  # int64 [LAYERS, C, 4]: modulus, magic, offset, salt
    tables,  # LAYERS tensors [rows, DIM]
    scales,  # as many
    addresses,  # int64 by layer and rank, of rows, then of scales; this and up to `counted`: None,
    hot,  # or LAYERS tensors [H, DIM]: rows that every GPU has; this and what follows may be None
    hot_scales,  # as many
    words,  # as many, of their hot sets
    ranks,
    counted,  # int64 [COUNTERS, 8]
    rank,  # of this GPU
    dead,  # bool [count]; this and what follows to `positions` may be None
    ages,  # [count]
    bounds,  # [sequences + 1]: ids are flat
    history,  # int32 [slots, ring]
    slots,  # [sequences]
    positions,  # [sequences]
    found_rows,  # int64 [LAYERS, count, C], what the vectors' gradient needs; or None
    count,
    run,
    sequences,
    steps,
    row_stride,
    column_stride,
    vocab,
    filler,
    eos,  # or None
    ring,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LAYERS: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    SALTED: tl.constexpr,
    COMMIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    ONCE: tl.constexpr,
    SHARDS: tl.constexpr,
    SCALES_HERE: tl.constexpr,
    ITEM: tl.constexpr,
    SCALE_ITEM: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Look rows up. Grid: blocks of tokens x blocks of columns, and layers."""
    # A token's columns come next to each other, so that programs that run together write to the
    # same pages of memory: 89 us for 95 at 16,384 tokens.
    COLUMN_BLOCKS: tl.constexpr = (COLUMNS + BLOCK_C - 1) // BLOCK_C
    layer = tl.program_id(1)
    first_column = tl.program_id(0) % COLUMN_BLOCKS * BLOCK_C
    first_token = tl.program_id(0) // COLUMN_BLOCKS * BLOCK_T
    lane = tl.arange(0, BLOCK_T * BLOCK_C)
    column = first_column + lane % BLOCK_C
    # One token a program: then the hash up to the mix is scalar.
    t = first_token if BLOCK_T == 1 else first_token + lane // BLOCK_C
    live = t < count
    here = layer * COLUMNS + tl.minimum(column, COLUMNS - 1)
    modulus = tl.load(columns + here * 4)
    magic = tl.load(columns + here * 4 + 1)
    first_row = tl.load(columns + here * 4 + 2)
    if HEADS % BLOCK_C == 0:  # one order a program: its multipliers are the same for all lanes
        weights = multipliers + (layer * (COLUMNS // HEADS) + first_column // HEADS) * N
    else:
        weights = multipliers + here // HEADS * N
    if bounds is not None:
        sequence = _find_sequence(t, bounds, sequences, steps)
        first = tl.load(bounds + sequence).to(tl.int32)
        offset = t - first
        blocked = (offset < 0) | (t >= tl.load(bounds + sequence + 1))
        token_at = ids + t.to(tl.int64) * column_stride
    else:
        sequence = t // run
        offset = t - sequence * run
        blocked = offset < 0
        token_at = ids + sequence.to(tl.int64) * row_stride + offset.to(tl.int64) * column_stride
    outside = blocked
    if history is not None:
        position = tl.load(positions + sequence, mask=live, other=0).to(tl.int32)
        slot = sequence.to(tl.int64)
        if slots is not None:
            slot = tl.load(slots + sequence, mask=live, other=0).to(tl.int64)
    if ages is not None:
        age = tl.load(ages + t, mask=live, other=0).to(tl.int32)
    for lag in tl.static_range(N):
        inside = live & (offset >= lag)
        raw = tl.load(token_at - lag * column_stride, mask=inside, other=0).to(tl.int64)
        known = inside & (raw >= 0) & (raw < vocab)
        found = tl.load(vocabulary + raw, mask=known, other=filler).to(tl.int32)
        if history is not None:
            before = position + offset - lag
            stored = live & (offset < lag) & (before >= 0) & (slot >= 0)
            cell = history + slot * ring + before % ring
            kept = tl.load(cell, mask=stored, other=-1).to(tl.int32)
            found = tl.where(offset < lag, kept, found)
        else:
            blocked |= offset < lag
        if dead is not None:
            wall = tl.load(dead + t - lag, mask=inside, other=0) != 0
            found = tl.where(wall, -1, found)
        blocked |= found < 0
        if ages is not None:
            blocked |= age < lag
        if eos is not None and lag > 0:
            blocked |= found == eos
        if COMMIT and lag == 0:
            token = found
        value = tl.where(blocked, filler, found).to(tl.int64)
        product = value * tl.load(weights + lag)
        if lag == 0:
            mix = product
        else:
            mix ^= product
    if COMMIT:
        # One program a block of tokens writes; nothing in this launch reads these cells.
        alone = first_column + layer + t * 0 == 0
        cell = history + slot * ring + (position + offset) % ring
        tl.store(cell, token, mask=live & alone & (slot >= 0) & (outside == 0))
    if SALTED:
        mix ^= tl.load(columns + here * 4 + 3)
    rows = _modulo(mix, modulus, magic) + first_row
    to_token = first_token + lane // BLOCK_C
    target = (layer * count + to_token).to(tl.int64) * COLUMNS + column
    served = (to_token < count) & (column < COLUMNS)
    if KIND == "rows":
        tl.store(out + target, rows, mask=served)
    else:
        if found_rows is not None:
            tl.store(found_rows + target, rows, mask=served)
        table, scale = of_layer(tables, layer, LAYERS), of_layer(scales, layer, LAYERS)
        begin, scale_begin = rows, rows
        if SHARDS:
            begin, scale_begin, here = locate(
                rows,
                served,
                layer,
                addresses,
                hot,
                hot_scales,
                words,
                ranks,
                rank,
                LAYERS,
                SHARDS,
                TABLE_STRIDE * ITEM,
                SCALE_STRIDE * SCALE_ITEM,
                SCALES_HERE,
            )
            begin = tl.gather(begin, lane, 0)
            if not SCALES_HERE:
                scale_begin = tl.gather(scale_begin, lane, 0)
        # A gather is computed once. Without it the compiler would compute the hash again in each
        # layout that it needs the rows in, eight times a thread (939 instructions, not 661).
        rows = tl.gather(rows, lane, 0)
        copy_rows(
            out,
            target,
            served,
            rows,
            table,
            scale,
            begin,
            scale_begin,
            DIM,
            TABLE_STRIDE,
            SCALE_STRIDE,
            KIND,
            BITS,
            VECTOR,
            BLOCK_D,
            CHUNKS,
            ONCE,
            SHARDS,
            SCALES_HERE,
            ALIGNED,
        )
        if counted is not None:
            count_rows(counted, here, count.to(tl.int64) * COLUMNS)

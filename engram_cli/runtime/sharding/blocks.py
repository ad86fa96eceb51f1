"""Where each rank has its rows of all layers: one block of bytes a rank, of equal size.

A block has the rows of all layers, one layer after another, as they are stored, and then the scales
likewise, unless every GPU has the scales of all rows. Rows without their scales are whole cache
lines where a row is: DeepSeek-V4.1's 256 bytes are two requests over NVLink; with the scales next
to them, three or four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.sharding.owners import count_at
from engram_cli.runtime.tables import HELD_DTYPES
from engram_cli.runtime.tiers.records import record_layout

_ALIGNMENT = 256
# Scales of all rows on every GPU take at most this share of what a GPU has to hold anyway.
MOST_SCALES = 1 / 8


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The block of each of `world` ranks, for layers of `heights` rows."""

    spec: BundleSpec
    heights: tuple[int, ...]
    world: int
    scales_here: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the bytes of a row in each part of a block: rows, and scales where it has them."""
        layout = record_layout(self.spec)
        has_scales = layout.scale_bytes and not self.scales_here
        return (layout.row_bytes, layout.scale_bytes) if has_scales else (layout.row_bytes,)

    def first(self, rank: int, place: int) -> int:
        """Return how many rows a rank has of the layers before the one at `place`."""
        return sum(count_at(height, rank, self.world) for height in self.heights[:place])

    @property
    def lines(self) -> int:
        """Return for how many rows a block has room: those of rank 0, which has the most."""
        return max(1, self.first(0, len(self.heights)))

    def begin(self, part: int) -> int:
        """Return the byte where the rows (part 0) or the scales (1) begin."""
        return part * -(-self.lines * self.widths[0] // _ALIGNMENT) * _ALIGNMENT

    @property
    def size(self) -> int:
        """Return the bytes of a block."""
        last = len(self.widths) - 1
        return self.begin(last) + self.lines * self.widths[last]

    def parts(self, block: Tensor) -> list[Tensor]:
        """Return the parts of a block, uint8 [lines, width] each: views."""
        return [
            block[self.begin(part) :][: self.lines * width].view(self.lines, width)
            for part, width in enumerate(self.widths)
        ]

    def held(self, block: Tensor, rank: int, place: int, part: int) -> Tensor:
        """Return the rows (part 0) or scales (1) of a layer in a rank's block: a view."""
        first = self.first(rank, place)
        count = count_at(self.heights[place], rank, self.world)
        return self.typed(self.parts(block)[part][first : first + count], part)

    def typed(self, found: Tensor, part: int) -> Tensor:
        """Return uint8 [n, width] of a part in the dtype that rows or scales are held in."""
        row_type = self.spec.row_type
        if part == 0:
            return found.view(HELD_DTYPES[row_type.items.tensor][0])
        assert row_type.scaling is not None
        return found.view(HELD_DTYPES[row_type.scaling.tensor][0])

    def addresses(self, starts: Sequence[int], place: int) -> tuple[int, ...]:
        """Return the addresses of a layer's rows at each rank, then of its scales if there.

        `starts`: the address of each rank's block.
        """
        return tuple(
            start + self.begin(part) + self.first(rank, place) * width
            for part, width in enumerate(self.widths)
            for rank, start in enumerate(starts)
        )


def scale_bytes(spec: BundleSpec) -> int:
    """Return the bytes of the scales of all rows, 0 where rows have none of their own."""
    rows = sum(spec.rows(layer) for layer in spec.layers)
    return rows * record_layout(spec).scale_bytes


def keeps_scales_here(spec: BundleSpec, world: int) -> bool:
    """Return whether every GPU has the scales of all rows, which saves a request for each row."""
    more = scale_bytes(spec) * (world - 1)
    return more <= spec.table_bytes * MOST_SCALES


def block_bytes(spec: BundleSpec, world: int) -> int:
    """Return the bytes that all rows take on each of `world` GPUs, scales included."""
    here = keeps_scales_here(spec, world)
    heights = tuple(spec.rows(layer) for layer in spec.layers)
    return BlockLayout(spec, heights, world, here).size + here * scale_bytes(spec)


def copy_bytes(spec: BundleSpec, world: int) -> int:
    """Return the bytes of the copy of a row on a GPU."""
    layout = record_layout(spec)
    return layout.row_bytes + layout.scale_bytes * (not keeps_scales_here(spec, world))

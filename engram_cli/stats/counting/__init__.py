"""Counts row hits and n-grams of a corpus: `count` has the loop, `thread_pool` the threads."""

TILE = 2048  # n-grams that a kernel takes together
SLOT_BITS = 17  # of the combining table, 1 MB: the lower ones of a slot are the place of its word
# An n-gram with its occurrences is a word, the upper bits of the key over the occurrences, and a
# place, which is the lower bits of the key scrambled by the upper ones.
LOW_BITS = 16
TIMES_BITS = 8
KEY_BITS = 64 - TIMES_BITS + LOW_BITS

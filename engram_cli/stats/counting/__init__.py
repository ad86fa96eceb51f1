"""Counts row hits and n-grams of a corpus: `count` has the loop, `counters` tasks and threads."""

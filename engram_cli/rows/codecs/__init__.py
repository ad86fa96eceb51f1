"""Encode float32 rows as stored items and scales, and decode them: a module for each family.

A codec module has `encode(row_type, values, stored, scales)`, `decode(row_type, stored, scales,
values)` and, where there are scales, `widen(row_type, scales)`; see `RowType` for the arguments.
"""

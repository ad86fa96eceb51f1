"""The rows of a layer in tiers: in HBM, in pinned host memory, on disk, or split by their hits.

Rows are copied between tiers as records: a stored row followed by its scales (`tier_records`). A
tier that holds every row of a layer is a `RowSource`. `placement` decides where rows are stored.
"""

"""Where a layer's rows lie: in HBM, in host memory, on disk, or split over them by their hits.

Rows travel between tiers as records, a row with its scales behind it (`source`). A tier that holds
every row of a layer is a `RowSource`; which rows lie where is decided in `placement`.
"""

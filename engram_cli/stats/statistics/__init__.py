"""The statistics, one module each: what it collects or computes, its result and its view."""

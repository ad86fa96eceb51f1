"""Builds, fills, scans and plans tables: a layout and an init become a Zarr store on disk."""

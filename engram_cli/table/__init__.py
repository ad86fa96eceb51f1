"""Stage 5 of 7: table stores. A layout and an initial state in, a Zarr store on disk out."""

"""`engram demo`: the main job on the package's own data."""

"""Reading a table once from end to end: norms, hits, hottest rows and rows that are alike."""

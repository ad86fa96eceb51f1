"""engram update: documents added to a table, and documents removed from it."""

"""engram hash-stats --to: documents added to statistics, and documents removed from them."""

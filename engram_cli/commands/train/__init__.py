"""`engram train`: trains a memory, and measures it before and after."""

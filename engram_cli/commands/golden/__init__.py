"""`engram golden`: test vectors for other implementations, and what is wrong with theirs."""

"""Stage 1 of 7: a tokenizer in, a compressed vocabulary (look-alike tokens share an id) out."""

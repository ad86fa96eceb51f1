"""Makes a compressed vocabulary of a tokenizer: look-alike tokens share an id."""

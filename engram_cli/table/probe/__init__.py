"""What a next-token table knows: its rows read back as a language model, beside counted ones."""

"""Samples n-grams and positions of a corpus, and estimates from them what was not counted."""

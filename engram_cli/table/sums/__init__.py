"""Sums that a table keeps, so that documents can be added to it and removed from it."""

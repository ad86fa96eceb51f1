"""Reads a next-token table back as a language model, and compares it with counted models."""

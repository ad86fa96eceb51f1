"""Trains a memory on text: transformers' Trainer with what sparse rows need. Imports torch."""

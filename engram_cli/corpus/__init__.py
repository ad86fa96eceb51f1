"""Reads the files of a corpus into blocks of token ids with the starts of documents.

`sources` finds the files, `readers` read them, `encode` turns text into ids, `stream` joins all.
"""

"""Stage 3 of 7: corpus files in, blocks of token ids with their document starts out.

`sources` finds the files, `readers` read them, `encode` turns text into ids, `stream` joins all.
"""

"""What each command is asked: one frozen dataclass for each, which imports nothing heavy.

`options` says how a field becomes an option. `corpus` holds the requests that read a corpus,
`tables` those that plan, build or attach tables, `reading` those that read artifacts.
"""

"""Runs the same work here or on a cluster: tasks over the partitions of a corpus, merged."""

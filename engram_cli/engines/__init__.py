"""Who counts: the same map and merge over the partitions of a corpus, here or on a cluster."""

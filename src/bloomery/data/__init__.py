"""From files to batches: readers, cleaning, deduplication, mixing, shards, packing."""

"""Schema changes of the feedback store, one file each, applied in order when a store is opened."""

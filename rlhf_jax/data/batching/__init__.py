"""Token ids as batches: the order of examples, padding, packing, and where a stream of them is."""

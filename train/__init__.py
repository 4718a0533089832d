"""The training loops: adapter, segmenter and base, one readable file each."""

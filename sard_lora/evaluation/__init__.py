"""Does a labelled set help? Segmenters, pixel metrics, baselines and the protocol that compares them."""

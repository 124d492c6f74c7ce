"""What a live router costs at every call: statistics of a layer's features, and the scores of its
heads."""

"""How adapters run fast: hand-written autograd functions."""

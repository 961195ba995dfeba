"""Drift: is the stream still what the model was made for. Signals a frame, a sequential detector each, one report."""

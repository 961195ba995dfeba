"""Model bundles: what is in one, and which one this box runs."""

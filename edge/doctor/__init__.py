"""Checks of `edge doctor`: what this box needs to inspect, one module a subject."""

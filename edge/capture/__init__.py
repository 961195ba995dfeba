"""Where frames come from: sources behind one protocol, a thread a camera, one bounded intake."""

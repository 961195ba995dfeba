"""The line's controller on a serial port: handshakes, their signals, and a simulator of the other side."""

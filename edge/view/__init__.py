"""What a technician looks at: plain MQTT subscribers that the daemon knows nothing of.

`state` folds messages into what is shown (pure), `terminal` draws it, `demo` runs a whole simulated line.
"""

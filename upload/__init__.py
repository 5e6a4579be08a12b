"""The zoo: its manifest, and the only code that writes to the Hub, `python -m upload`."""

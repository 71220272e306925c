"""The demo: the whole loop on real events with one command, and a report that can fail."""

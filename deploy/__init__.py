"""How it is run: command line, embedded stack, demo."""

"""The command line. `main.py` holds the table of commands; each command is one module with an object `command`."""

"""How fastrnn is built: the PEP 517 backend and the native build that setup.py runs."""

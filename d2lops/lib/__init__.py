"""The kernel libraries, one per target: setup.py puts them here and `d2lops.backends` loads one."""

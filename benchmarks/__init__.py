"""What d2lops costs, next to torch and to what the machine can do: ``python -m benchmarks``."""

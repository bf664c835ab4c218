"""What `bench.py` measures: one module a subject, each yields lines of one table."""

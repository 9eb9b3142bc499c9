"""What `scripts/bad_calls.py` and `scripts/memory_growth.py` call and with what."""

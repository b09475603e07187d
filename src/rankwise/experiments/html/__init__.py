"""The report as one HTML page with its figures and tables, made from the store alone (no torch)."""

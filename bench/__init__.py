"""Measuring. Imports the packages, is never imported by them; results are JSONL under bench/results."""

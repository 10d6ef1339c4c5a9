"""Measurements against public peers, each script alone: ratios in one run, never a test."""

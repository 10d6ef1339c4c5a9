"""Scores of members and ensembles on labelled images."""

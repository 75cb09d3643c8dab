"""Presenting scores: tables in the terminal, HTML report, charts."""

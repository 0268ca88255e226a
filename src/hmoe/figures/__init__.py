"""Pieces of pictures from plain records: charts, coloured text. No torch; matplotlib in charts.py alone."""

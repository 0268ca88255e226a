"""Tests of the room that assembles a corpus."""

"""Tests of reading, finding and downloading data sets."""

"""Bytes in and out: the log, its loop, dead letters, topics, data sets."""

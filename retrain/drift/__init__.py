"""Drift: additive counts, frozen references, one decision rule."""

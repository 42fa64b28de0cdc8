"""Offline work: data, training, attacks, evaluation. Knows models, never service."""

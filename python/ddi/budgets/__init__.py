"""Budgets: what an answer may cost, exits that fit, thresholds moved to a target."""

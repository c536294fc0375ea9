"""The words that all of ddi speaks: decisions, sites, passes. Nothing here knows a kind of gate or block."""

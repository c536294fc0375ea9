"""Prints the environment: `python -m ddi_kernels.collect_env`."""

from __future__ import annotations

from ddi_kernels.collect_env import collect_env, format_env

print(format_env(collect_env()))

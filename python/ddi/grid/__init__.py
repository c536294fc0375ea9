"""Many trainings from one file: a committed row for each finished one."""

from .grid import Grid, Run, read_grid, read_rows, row_key, write_rows

__all__ = ["Grid", "Run", "read_grid", "read_rows", "row_key", "write_rows"]

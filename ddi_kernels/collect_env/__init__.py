"""What an issue report or a results file needs to know about the machine and the installation.

Collects versions, the processor and the instruction set in use, whether the compiled kernels are
there and if not why, threads, and the environment variables that change what runs. Nothing is
imported only to be reported, so this is safe on a broken installation. Run it in a shell as
`python -m ddi_kernels.collect_env`.
"""

from ddi_kernels.collect_env.collect_env import collect_env, format_env

__all__ = ["collect_env", "format_env"]

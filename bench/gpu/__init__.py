"""Gated operators and networks on a GPU against dense ones, in CUDA graphs: `python -m bench.gpu`."""

"""Tiles of the Triton kernels, and which calls have one: asked before anything imports triton."""

"""A second opinion on every request: Istio's documented semantics in plain Python, sharing no code with weft."""

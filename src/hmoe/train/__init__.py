"""Training; read `loop` first."""

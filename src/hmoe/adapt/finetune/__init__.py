"""HyperMoE's fine-tuning recipes: its tasks as text to text, its settings, its baselines (Zhao et al. 2024)."""

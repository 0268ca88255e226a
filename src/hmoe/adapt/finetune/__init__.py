"""HyperMoE's fine-tuning recipes: tasks as text to text, settings, baselines (Zhao et al. 2024)."""

"""Keys of a recipe by the names that other trainers and config.json have for them; an error then leads to ours."""

OTHER_NAMES = {  # where likeness alone leads elsewhere
    "learning_rate": "optim.lr", "warmup": "optim.warmup_steps", "wd": "optim.weight_decay", "max_steps": "train.steps",
    "batch_size": "data.batch_tokens", "seq_len": "data.sequence_length", "max_length": "data.sequence_length",
    "gradient_accumulation_steps": "data.micro_batches", "folder": "data.path", "dataset": "data.path",
    "hidden_size": "model.dim", "d_model": "model.dim", "intermediate_size": "model.ffn",
    "max_position_embeddings": "model.context",
    "num_experts": "model.moe.widths", "n_experts": "model.moe.widths", "top_k": "model.moe.router.k",
    "num_experts_per_tok": "model.moe.router.k", "top_p": "model.moe.router.p", "aux_loss": "model.moe.load_balance",
    "router_aux_loss_coef": "model.moe.load_balance", "dtype": "train.precision", "save_steps": "train.save_every",
    "width_cost": "model.moe.losses", "size_balance": "model.moe.losses",
    "eval_steps": "train.eval_every", "log_steps": "train.log_every", "checkpoint_every": "train.save_every",
}  # fmt: skip

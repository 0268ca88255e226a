"""For every key of a recipe another valid value, and a run in which it can be changed alone."""

ROUTER = "model.moe.router="
BASES: dict[str, tuple[str, ...]] = {
    "plain": ("model.moe.load_balance=0.01",),
    "bpe": ("data.tokenizer=bpe:280",),
    "prepared": ("data.tokenizer=null", "data.path=DATA"),
    "groups": (ROUTER + "{name: top_k, k: 2, scores: sigmoid, groups: 4, keep_groups: 2, bias_rate: 0.01}",),
    "capacity": (ROUTER + "{name: top_k, k: 2, capacity_factor: 1.0, rectify: fr+ir, when: any}",),
    "top_p": (ROUTER + "{name: top_p, p: 0.6}", "model.moe.router_entropy=0.03"),
    "choice": (ROUTER + "{name: expert_choice, capacity_factor: 1.0}",),
    "zero": ("model.moe.zero={null: 2, copy: 1}", "model.moe.load_balance=0.01"),
    "null": ("model.moe.zero={null: 2}",),
    "hyper": ("model.moe.hyper={dim: 4, embedding: 8, hidden: 8, layer_embedding: 4}",),
    "yarn": ("model.rope_scaling={kind: yarn, factor: 2.0, original_length: 32, beta_fast: 32, beta_slow: 1}",),
    "llama3": ("model.rope_scaling={kind: llama3, factor: 2.0, original_length: 32, low_freq_factor: 1.0, "
               "high_freq_factor: 4.0}",),
    "wsd": ("optim.schedule=wsd", "optim.schedule_steps=50", "optim.decay_steps=5", "optim.floor=0.2",
            "optim.warmup_steps=3"),
    "dense": ("model.moe.dense_layers=[0]", "model.ffn=48"),
    "skip": (ROUTER + "{name: top_k, k: 2, skip: 0.2}",),
    "placed": ("parallel.experts=expert_parallel",),
    "replaced": ("parallel.experts=expert_parallel", "parallel.replace_every=5"),
    "offload": ("parallel.offload=disk",),
}  # fmt: skip
_TABLE = """
seed                                     plain    seed=1
model.dim                                plain    model.dim=64
model.layers                             plain    model.layers=3
model.heads                              plain    model.heads=4
model.kv_heads                           plain    model.kv_heads=1
model.head_dim                           plain    model.head_dim=8
model.qk_norm                            plain    model.qk_norm=head
model.vocab                              plain    model.vocab=310
model.ffn                                dense    model.ffn=40
model.tied                               plain    model.tied=true
model.rope_theta                         plain    model.rope_theta=500
model.norm_eps                           plain    model.norm_eps=1e-6
model.context                            plain    model.context=64
model.moe.widths.shape                   plain    model.moe.widths={shape: geometric, total: 128, experts: 8, ratio: 3}
model.moe.widths.total                   plain    model.moe.widths.total=256
model.moe.widths.experts                 plain    model.moe.widths.experts=4
model.moe.widths.ratio                   plain    model.moe.widths.ratio=2
model.moe.widths.multiple                plain    model.moe.widths.multiple=2
model.moe.router.name                    plain    model.moe.router={name: top_p}
model.moe.router.k                       plain    model.moe.router.k=1
model.moe.router.renormalize             plain    model.moe.router.renormalize=false
model.moe.router.straight_through        plain    model.moe.router.straight_through=true
model.moe.router.scores                  plain    model.moe.router.scores=sigmoid
model.moe.router.gate_scale              plain    model.moe.router.gate_scale=2.5
model.moe.router.groups                  groups   model.moe.router.groups=2
model.moe.router.keep_groups             groups   model.moe.router.keep_groups=3
model.moe.router.bias_rate               groups   model.moe.router.bias_rate=0.02
model.moe.router.bias_by                 groups   model.moe.router.bias_by=compute
model.moe.router.capacity_factor         capacity model.moe.router.capacity_factor=1.25
model.moe.router.eval_capacity_factor    capacity model.moe.router.eval_capacity_factor=2.0
model.moe.router.min_capacity            capacity model.moe.router.min_capacity=4
model.moe.router.capacity_by             capacity model.moe.router.capacity_by=width
model.moe.router.priority                capacity model.moe.router.priority=score
model.moe.router.rectify                 capacity model.moe.router.rectify=ir
model.moe.router.when                    capacity model.moe.router.when=fewer
model.moe.router.local_scale             capacity model.moe.router.local_scale=k+1-r
model.moe.router.ranks                   capacity model.moe.router.ranks=2
model.moe.router.skip                    skip     model.moe.router.skip=0.3
model.moe.router.jitter                  plain    model.moe.router.jitter=0.01
model.moe.router.gumbel                  plain    model.moe.router.gumbel=true
model.moe.router.p                       top_p    model.moe.router.p=0.7
model.moe.router.capacity_factor         choice   model.moe.router.capacity_factor=2.0
model.moe.router.capacity_by             choice   model.moe.router.capacity_by=compute
model.moe.shared                         plain    model.moe.shared=8
model.moe.zero.null                      zero     model.moe.zero.null=1
model.moe.zero.copy                      zero     model.moe.zero.copy=2
model.moe.zero.constant                  zero     model.moe.zero.constant=1
model.moe.zero.true_gates                null     model.moe.zero.true_gates=true
model.moe.zero.balance                   zero     model.moe.zero.balance=0.75
model.moe.skip                           plain    model.moe.skip=[0.1,0.2]
model.moe.hyper.dim                      hyper    model.moe.hyper.dim=5
model.moe.hyper.embedding                hyper    model.moe.hyper.embedding=9
model.moe.hyper.hidden                   hyper    model.moe.hyper.hidden=9
model.moe.hyper.layer_embedding          hyper    model.moe.hyper.layer_embedding=5
model.moe.hyper.init                     hyper    model.moe.hyper.init=zero
model.moe.dense_layers                   dense    model.moe.dense_layers=[1]
model.moe.load_balance                   plain    model.moe.load_balance=0.02
model.moe.parameter_penalty              plain    model.moe.parameter_penalty=0.2
model.moe.penalty_norm                   plain    model.moe.penalty_norm=max
model.moe.router_entropy                 top_p    model.moe.router_entropy=0.02
model.moe.entropy_scale                  top_p    model.moe.entropy_scale=one
model.moe.router_z                       plain    model.moe.router_z=0.001
model.moe.losses                         plain    model.moe.losses={fault_loss: 0.5}
model.moe.statistics                     plain    model.moe.statistics=batch
model.rope_scaling.kind                  yarn     model.rope_scaling={kind: dynamic, beta_fast: null, beta_slow: null}
model.rope_scaling.factor                yarn     model.rope_scaling.factor=4.0
model.rope_scaling.original_length       yarn     model.rope_scaling.original_length=16
model.rope_scaling.beta_fast             yarn     model.rope_scaling.beta_fast=30
model.rope_scaling.beta_slow             yarn     model.rope_scaling.beta_slow=2
model.rope_scaling.attention_factor      yarn     model.rope_scaling.attention_factor=1.5
model.rope_scaling.truncate              yarn     model.rope_scaling.truncate=false
model.rope_scaling.low_freq_factor       llama3   model.rope_scaling.low_freq_factor=2.0
model.rope_scaling.high_freq_factor      llama3   model.rope_scaling.high_freq_factor=8.0
data.path                                prepared data.path=DATA2
data.tokenizer                           prepared data.path=corpus data.tokenizer=bytes
data.tokenizer                           bpe      data.tokenizer=bpe:290
data.tokenizer                           bpe      data.tokenizer=bytes
data.sequence_length                     plain    data.sequence_length=64
data.batch_tokens                        plain    data.batch_tokens=256
data.micro_batches                       plain    data.micro_batches=4
data.micro_batches                       plain    data.micro_batches=null
data.weights.DOMAIN                      prepared data.weights={a: 2.0}
data.verify                              prepared data.verify=false
optim.lr                                 plain    optim.lr=0.5
optim.betas                              plain    optim.betas=[0.8,0.95]
optim.eps                                plain    optim.eps=1e-7
optim.weight_decay                       plain    optim.weight_decay=0.2
optim.decay_all                          plain    optim.decay_all=true
optim.clip                               plain    optim.clip=0.5
optim.clip                               plain    optim.clip=null
optim.warmup_steps                       wsd      optim.warmup_steps=4
optim.schedule                           plain    optim.schedule=cosine optim.schedule_steps=40
optim.schedule_steps                     wsd      optim.schedule_steps=60
optim.decay_steps                        wsd      optim.decay_steps=6
optim.floor                              wsd      optim.floor=0.3
train.steps                              plain    train.steps=4
train.tokens                             plain    train.steps=null train.tokens=512
train.flops                              plain    train.flops=1e15
train.seconds                            plain    train.seconds=1e9
train.precision                          plain    train.precision=bfloat16
train.precision                          plain    train.precision=float64
train.activation_checkpointing           plain    train.activation_checkpointing=true
train.activation_checkpointing           plain    train.activation_checkpointing=null
train.compile                            plain    train.compile=true
train.save_every                         plain    train.save_every=3
train.keep                               plain    train.keep=2
train.log_every                          plain    train.log_every=2
train.eval_every                         plain    train.eval_every=1
train.eval_flops                         plain    train.eval_flops=[1e6]
train.eval_sequences                     plain    train.eval_sequences=2
train.sample_every                       plain    train.sample_every=1
train.inspect_every                      plain    train.inspect_every=1
train.sample_prompt                      plain    train.sample_prompt=A train.sample_every=1
train.sample_tokens                      plain    train.sample_tokens=3 train.sample_every=1
train.dead_after                         plain    train.dead_after=1
parallel.shard                           plain    parallel.shard=zero3
parallel.shard                           plain    parallel.shard=none
parallel.experts                         plain    parallel.experts=expert_parallel
parallel.expert_placement                placed   parallel.expert_placement=contiguous
parallel.expert_replicas                 placed   parallel.expert_replicas=1
parallel.replace_every                   placed   parallel.replace_every=7
parallel.replace_gain                    replaced parallel.replace_gain=0.2
parallel.cut_experts                     placed   parallel.cut_experts=true
parallel.replicas                        plain    parallel.replicas=1
parallel.exact                           plain    parallel.exact=true
parallel.offload                         plain    parallel.offload=disk
parallel.offload                         offload  parallel.offload=none
parallel.offload_bytes                   offload  parallel.offload_bytes=40000
parallel.offload_folder                  offload  parallel.offload_folder=SPACE
parallel.threads                         plain    parallel.threads=1
"""


def split_row(line: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the key, the base and the overrides of a row; a space inside of braces parts no words."""
    key, base, rest = line.split(None, 2)
    words = [rest] if "{" in rest else rest.split()
    return key, base, tuple(words)


CHANGES = tuple(split_row(line) for line in _TABLE.strip().splitlines())

"""Every field with its default and one line on what it is; other configs change lines of it.

    python -m leafe_jax.main --config=configs/default.py --workdir=runs/default

runs the method on the embedded model at full size. Paper values are marked (paper).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # every random choice of the run is derived from it by name
    # What to do, in this order: bootstrap, habits, explore, distill, evaluate, report.
    c.phases = ("explore", "distill", "evaluate", "report")

    c.model = ml_collections.ConfigDict()
    c.model.path = ""  # Hugging Face directory; "" is the embedded base model
    c.model.chat_template = ""  # Jinja file to use in place of the checkpoint's; "" is its own
    c.model.enable_thinking = True  # told to templates that ask (Qwen3)
    c.model.dtype = "float32"  # of weights and cache while sampling: float32 or bfloat16

    c.env = ml_collections.ConfigDict()
    c.env.name = "household"  # any of envs.REGISTRY
    c.env.horizon = 20  # environment steps per episode (T)
    c.env.prompt_style = "plain"  # plain (reply = action) or react (think, then action in tags)
    c.env.options = ml_collections.ConfigDict()  # the environment's own (its config has them)

    c.context = ml_collections.ConfigDict()
    c.context.mode = (
        "dialogue"  # dialogue (one growing conversation) or window (rebuilt every step)
    )
    c.context.window = 2  # observation-action pairs shown in window mode (verl-agent: 2)

    c.sampler = ml_collections.ConfigDict()
    c.sampler.num_slots = 128  # conversations computed together
    c.sampler.page_size = 16  # positions whose keys and values lie together
    c.sampler.num_pages = 0  # of the pool; 0 has room for num_slots conversations of max_len
    c.sampler.max_len = 384  # tokens per conversation
    c.sampler.turn_chunk = 16  # prompt tokens handled together with decoding
    c.sampler.prefill_chunk = 32  # prompt tokens per prefill call
    c.sampler.max_action_tokens = 8  # tokens per action
    c.sampler.max_reflection_tokens = 16  # tokens per reflection
    c.sampler.temperature = 1.0  # of actions and reflections in stage 1
    # The rest holds in evaluation too, with evaluate.temperature.
    c.sampler.top_k = 0  # only the k likeliest tokens; 0 keeps all
    c.sampler.top_p = 1.0  # only the likeliest tokens that have this probability together
    c.sampler.min_p = 0.0  # only tokens this many times as likely as the likeliest
    c.sampler.repetition_penalty = 1.0  # on tokens that stand in the context; 1 is none
    c.sampler.logit_bias = ()  # (token id, value added to its logit) pairs
    c.sampler.stop_ids = ()  # token ids that end a reply, beside the checkpoint's own
    c.sampler.stop_strings = ()  # texts that end a reply
    c.sampler.copies = 0  # of the model; 0: as many as this process has devices for
    c.sampler.tensor = 1  # devices that divide one copy among them
    c.sampler.attention = "auto"  # gather (contiguous rows), paged (in place); auto: paged on TPU
    c.sampler.compile_ahead = True  # compile the sampler's programs in the background

    c.explore = ml_collections.ConfigDict()
    c.explore.split = "train"  # tasks of stage 1
    c.explore.num_tasks = 384  # the split's first tasks; 0 takes all
    c.explore.block_size = 48  # tasks explored together; a killed run repeats at most one block
    c.explore.method = "tree"  # tree (LEAFE), independent (IS) or refine (IR)
    c.explore.num_roots = 2  # trajectories begun without experience, per task
    c.explore.max_attempts = 8  # trajectories per task, roots included
    c.explore.max_depth = 4  # branches on the way from a root
    c.explore.reflect_every = 8  # K, in steps
    c.explore.reflect_on_failure = True
    c.explore.continue_after_branch = False  # a trajectory that was branched from plays on
    c.explore.show_experience = True  # False: roll back and sample again without e (control)
    c.explore.experience_span = "branch"  # e stays for the branch, or for one "step"
    c.explore.max_env_steps = 0  # environment steps per task; 0: no limit
    c.explore.max_generated_tokens = 0  # sampled tokens per task; 0: no limit

    c.distill = ml_collections.ConfigDict()
    c.distill.counterfactual_weight = 1.0  # weight of L_cf; 0: L_reh only
    c.distill.beta = 1.0  # weight of L_reh; 0: L_cf only
    c.distill.counterfactual_per_task = 3  # (paper: about 3); 0 keeps all
    c.distill.qualify = "success"  # branches whose subtree succeeds, or that "improve" the return
    c.distill.changed_only = True  # drop pairs whose action had been taken anyway
    c.distill.rehearsal_share = 0.2  # of the successful trajectories (paper)
    c.distill.normalisation = "example"  # mean over pairs, or over every "token"
    c.distill.train = train_config()

    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.methods = ("base", "leafe")  # models to evaluate
    c.evaluate.split = "test"  # held-out tasks
    c.evaluate.num_tasks = 48  # the split's first tasks; 0 takes all
    c.evaluate.num_samples = 128  # episodes per task: n of Pass@k
    c.evaluate.block_size = 12  # tasks evaluated together
    c.evaluate.temperature = 1.0
    c.evaluate.num_resamples = 2000  # of the bootstrap over tasks
    return c


def laptop_config(name: str, mode: str) -> ml_collections.ConfigDict:
    """The fields that the small games have in common: dialogue, in a context of 1,024 tokens."""
    c = get_config()
    c.env.name = name
    c.sampler.num_slots = 48
    c.sampler.max_len = 1024
    c.sampler.turn_chunk = 32
    c.sampler.prefill_chunk = 128
    c.explore.num_tasks = 96
    c.explore.block_size = 24
    c.explore.max_attempts = 6
    c.explore.reflect_every = 5
    t = c.distill.train
    t.seq_len = 1024
    t.batch_size = 4
    c.evaluate.num_tasks = 36
    c.evaluate.num_samples = 32
    if mode == "smoke":
        c.explore.num_tasks = c.evaluate.num_tasks = 4
        c.explore.block_size = c.evaluate.block_size = 4
        c.explore.num_roots = 1
        c.explore.max_attempts = 2
        c.evaluate.num_samples = 2
        c.evaluate.methods = ("base",)
        c.phases = ("explore", "evaluate", "report")
        c.sampler.num_slots = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        raise ValueError(f"--config=configs/{name}.py:{mode}: the modes are full and smoke")
    return c


def train_config() -> ml_collections.ConfigDict:
    """Fields of one SFT run."""
    t = ml_collections.ConfigDict()
    t.seq_len = 384  # tokens per packed row
    t.batch_size = 8  # rows per optimizer step
    t.accumulation = 1  # parts that a batch is computed in, one after the other
    t.num_epochs = 5  # (paper: 2 to 3)
    t.learning_rate = 1e-3  # for the embedded model (paper: 1e-6 at 7B and above)
    t.schedule = "linear"  # after the warm-up: constant, linear or cosine (to zero)
    t.warmup_steps = 5
    t.weight_decay = 0.0
    t.b1 = 0.9
    t.b2 = 0.98
    t.eps = 1e-8
    t.clip_norm = 1.0  # most of the global gradient norm, above 0; inf clips none
    t.compute_dtype = "float32"  # of activations; master weights are always float32
    t.attention = "auto"  # jnp, splash (TPU), cudnn (GPU); auto takes the platform's own
    t.loss_chunk = 8192  # vocabulary entries whose logits exist at the same time
    t.remat = "none"  # activations computed again in the backward pass: none, dots (all but the
    # results of projections are) or full (all but each layer's input)
    t.scan_layers = False  # compile one layer instead of all: for deep models
    t.lora = ml_collections.ConfigDict()
    t.lora.rank = 0  # of adapters trained in place of the weights; 0 trains the weights
    t.lora.alpha = 32.0  # scale of the adapters, divided by the rank
    t.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    t.checkpoint_every = 50  # steps
    t.log_every = 10  # steps
    t.max_nonfinite = 5  # non-finite steps in a row that end the run
    t.notice_url = ""  # polled for a maintenance notice: any answer but NONE saves and exits
    t.mesh = ml_collections.ConfigDict()
    t.mesh.data = -1  # devices along each axis; -1 takes the rest
    t.mesh.fsdp = 1
    t.mesh.tensor = 1
    return t

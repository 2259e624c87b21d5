"""Bad configs of the drill: settings of debug.toml's that do not go together."""

from titan_motif.drill.bad_layouts import WITHOUT_PHASES, Together

_EMULATED = (
    'model.converters = ["quantize.linear.float8"]',
    "quantize.linear.float8.emulate = true",
)
_TUNING = (*WITHOUT_PHASES, "sft.enable = true", 'sft.data = ["chat.jsonl"]')


COMBINATIONS = (
    Together(
        "optimizer.muon.momentum",
        "it needs optimizer.name to be 'ParallelMuon', which is 'AdamW'",
        (
            'optimizer.name = "AdamW"',
            "optimizer.muon.momentum = 0.9",
        ),
    ),
    Together(
        "optimizer.muon.owner_scope",
        "-1 or a divisor of parallelism.data_parallel_replicate_degree, 1, is needed",
        ("optimizer.muon.owner_scope = 2",),
    ),
    Together(
        "optimizer.muon.adamw_patterns",
        "'layer.0.*' matches no parameter (names are such as 'layers.0.",
        ('optimizer.muon.adamw_patterns = ["layer.0.*"]',),
    ),
    Together(
        "optimizer.muon.muon_patterns",
        "is claimed by the muon pattern 'layers.0.*proj*' and by the adamw pattern",
        (
            'optimizer.muon.muon_patterns = ["layers.0.*proj*"]',
            'optimizer.muon.adamw_patterns = ["layers.*.q_proj.*"]',
        ),
    ),
    Together(
        "optimizer.qk_clip_interval",
        "is 4; it needs optimizer.qk_clip to be true",
        (
            "optimizer.qk_clip = false",
            "optimizer.qk_clip_interval = 4",
        ),
    ),
    Together(
        "lr_scheduler.warmup_tokens",
        "is 5000 and warmup_steps is 40; one of them is allowed",
        ("lr_scheduler.warmup_tokens = 5000",),
    ),
    Together(
        "lr_scheduler.min_lr_factor",
        "more than 0 is needed where decay_type is 'inverse_sqrt'",
        (
            'lr_scheduler.decay_type = "inverse_sqrt"',
            "lr_scheduler.min_lr_factor = 0.0",
        ),
    ),
    Together(
        "lr_scheduler.total_steps",
        "is 100; at least training.steps, 385, is needed",
        ("lr_scheduler.total_steps = 100",),
    ),
    Together(
        "checkpoint.initial_load_path",
        "is 'no/such/step'; no such folder",
        ('checkpoint.initial_load_path = "no/such/step"',),
    ),
    Together(
        "checkpoint.load_step",
        "is 128; it needs checkpoint.enable to be true",
        (
            "checkpoint.enable = false",
            "checkpoint.load_step = 128",
        ),
    ),
    Together(
        "checkpoint.create_seed_checkpoint",
        "is true; it needs one process, and there are 2: NGPU=1",
        ("checkpoint.create_seed_checkpoint = true",),
    ),
    Together(
        "moving_average.enable",
        "is true; it needs checkpoint.load_only to be false",
        (
            "checkpoint.load_only = true",
            "checkpoint.keep_latest_k = 0",
            "moving_average.enable = true",
        ),
    ),
    Together(
        "moving_average.num_checkpoints",
        "is 6; checkpoint.keep_latest_k keeps 2: at most that many are allowed",
        (
            "moving_average.enable = true",
            "moving_average.num_checkpoints = 6",
        ),
    ),
    Together(
        "activation_checkpoint.mode",
        "is 'memory_budget'; it needs compile.enable",
        ('activation_checkpoint.mode = "memory_budget"',),
    ),
    Together(
        "activation_checkpoint.selective_ac_option",
        "is '9'; there are 4 blocks, none of which it would reach: 1 to 4 is allowed",
        (
            'activation_checkpoint.mode = "selective"',
            'activation_checkpoint.selective_ac_option = "9"',
        ),
    ),
    Together(
        "activation_checkpoint.selective_ac_option",
        "is 'op'; it needs activation_checkpoint.mode to be 'selective'",
        (
            'activation_checkpoint.mode = "full"',
            'activation_checkpoint.selective_ac_option = "op"',
        ),
    ),
    Together(
        "compile.components",
        "is []; compile.enable is true: 'model' or 'loss' is needed",
        (
            "compile.enable = true",
            "compile.components = []",
        ),
    ),
    Together(
        "quantize.linear.float8.enable_fsdp_float8_all_gather",
        "only 'tensorwise' has one scale for all ranks' parts of a weight",
        (
            *_EMULATED,
            "quantize.linear.float8.enable_fsdp_float8_all_gather = true",
        ),
    ),
    Together(
        "quantize.linear.float8.filter_fqns",
        "has 'wq', which no linear layer's name has",
        (
            *_EMULATED,
            'quantize.linear.float8.filter_fqns = ["wq"]',
        ),
    ),
    Together(
        "model.args",
        "344 x 160; products in FP8 need multiples of 16",
        (
            *_EMULATED,
            "model.args.hidden_dim = 344",
        ),
    ),
    Together(
        "training.dataset_path",
        "no/such/folder/train/tokens.npy: no such file",
        (
            *WITHOUT_PHASES,
            'training.dataset = "prepared"',
            'training.dataset_path = "no/such/folder"',
        ),
    ),
    Together(
        "training.restart_positions",
        "is true; it needs training.mask_documents to be true",
        ("training.restart_positions = true",),
    ),
    Together(
        "training.dataloader.prefetch_factor",
        "is 2 with 0 workers; at least 1 of each is needed",
        ("training.dataloader.prefetch_factor = 2",),
    ),
    Together(
        "sft.data",
        "is empty; files of conversations are needed",
        (
            *_TUNING,
            "sft.data = []",
        ),
    ),
    Together(
        "validation.seq_len",
        "samples are packed into sequences of training.seq_len, 128",
        (
            *_TUNING,
            "validation.seq_len = 64",
        ),
    ),
    Together(
        "sft.enable",
        "the curriculum has sources or phases: sft.data is read alone",
        (
            "sft.enable = true",
            'sft.data = ["chat.jsonl"]',
            "validation.enable = false",
        ),
    ),
    Together("evaluation.tasks", "is []; a task is needed", ("evaluation.enable = true",)),
    Together(
        "watchdog.stall_seconds",
        "less than comm.train_timeout_seconds (600) is needed",
        ("watchdog.stall_seconds = 700",),
    ),
    Together(
        "job.dump_folder",
        "bad.toml is no folder: a folder that can be written into is needed",
        ('job.dump_folder = "bad.toml/run"',),
    ),
    Together(
        "experimental.custom_import",
        "is 'no_such.module'; Python finds no such module here",
        ('experimental.custom_import = "no_such.module"',),
    ),
)

"""Bad configs of the drill: files that are no TOML, or name what is no setting; command lines."""

from typing import NamedTuple


class BadFile(NamedTuple):
    """debug.toml, in which some text is replaced by another one."""

    old: str
    new: bytes
    line: str
    """What stands in the line that the refusal names."""
    words: tuple[str, ...]
    """Of the refusal."""


_TOP = "# The first run"
FILES = (
    # what is no setting
    BadFile(
        "steps = -1  ",
        b"stepz = -1",
        "stepz",
        ("training.stepz is not a setting; did you mean training.steps?",),
    ),
    BadFile(
        "[optimizer]",
        b"[optimiser]",
        "name = ",
        ("optimiser.name is not a setting; did you mean optimizer.name?",),
    ),
    BadFile(
        "[metrics]",
        b"[metrcs]\n[metrics]",
        "[metrcs]",
        ("metrcs is not a setting; did you mean metrics?",),
    ),
    BadFile(_TOP, b"steps = 5\n# The first run", "steps = 5", ("steps is not a setting; did you",)),
    BadFile(_TOP, b"compile = true\n#", "compile", ("compile is a section; name one of its",)),
    BadFile("[debug]", b"[[debug]]", "[[debug]]", ("debug is a section; name one of its",)),
    BadFile(
        "steps = -1  ",
        b'"dataloader.num_workers" = 2 #',
        "num_workers",
        ("training.'dataloader.num_workers' is not a setting; did you mean training.dataloader",),
    ),
    BadFile(
        'path = "code"',
        b'pth = "code"',
        "pth",
        ("curriculum.sources.2.pth is not a setting; did you mean path?",),
    ),
    BadFile(
        "[debug]\nseed = 0",
        b"[debug.seed]\nvalue = 0",
        "value",
        ("debug.seed.value is not a setting; did you mean debug.seed?",),
    ),
    BadFile(
        "[debug]\nseed = 0", b"[debug.seed]", "[debug.seed]", ("debug.seed is {}; an integer",)
    ),
    # what it is based on
    BadFile(_TOP, b'base = "bad.toml"\n#', "base", ("base is 'bad.toml'; that is based on this",)),
    BadFile(_TOP, b'base = "debgu.toml"\n#', "base", ("is 'debgu.toml'; ", "no such file")),
    BadFile(_TOP, b"base = 3\n#", "base", ("base is 3; the name of a TOML file is needed",)),
    BadFile(_TOP, b'base = ""\n#', "base", ("base is ''; the name of a TOML file is needed",)),
    # what is no TOML
    BadFile(
        "beta1 = 0.9",
        b"beta1 = 0.9\nbeta1 = 0.8",
        "beta1 = 0.8",
        ("not valid TOML: Cannot overwrite a value; found 'beta1 = 0.8'",),
    ),
    BadFile(
        "[debug]",
        b"[metrics]\n[debug]",
        "[metrics]",
        ("not valid TOML: Cannot declare ('metrics',) twice; found '[metrics]'",),
    ),
    BadFile("lr = 8e-3 ", b"lr = 8e-3\nlr.peak = 1 #", "lr.peak", ("not valid TOML: Cannot ",)),
    BadFile(
        'flavor = "debug"',
        b'flavor = "debug',
        "flavor",
        ("not valid TOML: Illegal character ", "found 'flavor = \"debug'"),
    ),
    BadFile("[model]", b"[model", "[model", ("not valid TOML: Expected ']'", "found '[model'")),
    BadFile(
        'name = "motif2"',
        b"name = motif2",
        "name = motif2",
        ("not valid TOML: Invalid value; found 'name = motif2'",),
    ),
    BadFile(
        "keep_latest_k = 2",
        b"keep_latest_k = 2 4",
        "keep_latest_k",
        ("not valid TOML: Expected newline", "found 'keep_latest_k = 2 4'"),
    ),
    BadFile("lr = 8e-3 ", b"lr = 0,008 #", "lr = 0,008", ("not valid TOML: Expected newline",)),
    BadFile(
        "enable = true\nfreq",
        b"enable = True\nfreq",
        "enable = True",
        ("not valid TOML: Invalid value; found 'enable = True'",),
    ),
    BadFile("seed = 0", b"seed = [0", "seed = [0", ("not valid TOML: Unclosed array",)),
    BadFile("seed = 0", b"seed = \x000", "seed", ("not valid TOML: Invalid value",)),
    BadFile(_TOP, b"\xef\xbb\xbf#", "#", ("begins with a byte-order mark; UTF-8 without one",)),
    BadFile("Motif-2 debug", b"Motif-2 \xfcber", "description", ("byte 0xfc is not UTF-8",)),
)

COMMAND_LINES = (
    (("--training.step", "3"), "--training.step is not a setting; did you mean training.steps?"),
    (("--training.steps", "ten"), "--training.steps is 'ten'; an integer is needed"),
    (("--training.steps=5\nx = 3",), r"--training.steps is '5\nx = 3'; an integer is needed"),
    (("--training.steps",), "--training.steps is given no value; an integer is needed"),
    (("--job.dump_folder", "--compile.enable"), "--job.dump_folder is given no value; a text"),
    (("--metrics.no_log_freq",), "--metrics.log_freq is given no value; an integer is needed"),
    (("debug.toml",), "'debug.toml' stands alone; write --section.field"),
    (("--training", "7"), "--training is a section; name one of its settings"),
    (("--optimizer.lr=nan",), "--optimizer.lr is nan; a finite number"),
    (("--optimizer.muon.scale=spectrel",), "'none' (did you mean 'spectral'?) is needed"),
    (("--curriculum.phases=[]",), "--curriculum.phases is a table; it is given in a TOML file"),
    (("--checkpoint.exclude_from_loading=model,modle",), "'train_state' is allowed (did you mean"),
    (("--parallelism.tensor_parallel_degree=3",), "their product must divide the 2 processes"),
    (("--job.dump_folder=",), "job.dump_folder is ''; a text is needed, such as './outputs'"),
)
"""Arguments beside a good file, and words of the refusal."""

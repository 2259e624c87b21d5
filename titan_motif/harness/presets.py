"""What `--tasks` can name beside the harness's own tasks: benchmarks of the report, local tasks."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

PREFIX = "motif2"
"""`motif2` is all benchmarks of the report, `motif2:NAME` one of them."""
LOCAL = "local"
"""All local tasks."""
LISTING = "`titan-motif evaluate --list-tasks`"
ALLOW_CODE = "HF_ALLOW_CODE_EVAL"
"""Set to 1 by whoever allows what a model has written to be run."""


@dataclass(frozen=True)
class Preset:
    """A benchmark of the report (https://arxiv.org/abs/2511.07464) as a task of the harness."""

    title: str
    task: str
    """The harness's name of it."""
    shots: int
    is_reports: bool
    """Whether the number of shots is the report's; otherwise it is ours."""
    data: str
    """What is downloaded from the Hugging Face hub: a data set, of some a metric's script too."""
    needs: str = ""
    """What else has to be there."""
    runs_code: bool = False


_CODE = f"{ALLOW_CODE}=1, since it runs the code that the model writes"

PRESETS = {
    "gsm8k": Preset("GSM8K, chain of thought", "gsm8k_cot", 8, True, "openai/gsm8k"),
    "math": Preset(
        "MATH",
        "minerva_math",
        4,
        True,
        "EleutherAI/hendrycks_math",
        "pip install 'lm-eval[math]'",
    ),
    "humaneval": Preset(
        "HumanEval",
        "humaneval",
        0,
        True,
        "openai/openai_humaneval, code_eval",
        _CODE,
        runs_code=True,
    ),
    "mbpp": Preset(
        "MBPP", "mbpp", 3, True, "google-research-datasets/mbpp, code_eval", _CODE, runs_code=True
    ),
    "mmlu": Preset("MMLU", "mmlu", 5, True, "cais/mmlu"),
    "mmlu_pro": Preset("MMLU-Pro", "mmlu_pro", 5, False, "TIGER-Lab/MMLU-Pro"),
    "bbh": Preset("BBH, chain of thought", "bbh_cot_fewshot", 3, False, "SaylorTwift/bbh"),
    "arc_c": Preset("ARC-C", "arc_challenge", 25, False, "allenai/ai2_arc"),
    "hellaswag": Preset("HellaSwag", "hellaswag", 10, False, "Rowan/hellaswag"),
    "gpqa": Preset(
        "GPQA",
        "gpqa_main_n_shot",
        5,
        False,
        "Idavidrein/gpqa",
        "its terms accepted on the hub, and HF_TOKEN",
    ),
    "drop": Preset("DROP", "drop", 3, False, "EleutherAI/drop"),
    "triviaqa": Preset("TriviaQA", "triviaqa", 5, False, "mandarjoshi/trivia_qa"),
    "winogrande": Preset("WinoGrande", "winogrande", 5, False, "allenai/winogrande"),
}
"""The report's benchmarks. ASSUMPTION: where it tells no number of shots, the usual one."""

LOCAL_TASKS = {
    "sums": "200 additions of one- and two-digit numbers that are kept for evaluation",
    "arithmetic": "200 word problems as those of the built-in corpus, none of which it holds",
    "perplexity": "bits per byte and nats per token of held-out documents, by group (--data)",
    "needle": "a fact in a text of 256 to 16,384 tokens at five depths, among four choices",
}
"""Tasks that need no download. They come before tasks of the harness of the same name."""


class Wanted(NamedTuple):
    """A task that was asked for."""

    name: str
    shots: int | None = None
    """None is the task's own number."""
    preset: Preset | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a task of ours, which needs no download."""
        return self.preset is None and self.name in LOCAL_TASKS


def wanted_tasks(names: Sequence[str], option: str = "--tasks") -> list[Wanted]:
    """Return what the names of an option stand for, each once; names may hold commas.

    Raises: ValueError, one line, for no name, or a preset that is not there
    """
    split = [part.strip() for name in names for part in name.split(",")]
    found: list[Wanted] = []
    for name in filter(None, split):
        prefix, colon, rest = name.partition(":")
        if name == PREFIX:
            found += [_of_preset(preset) for preset in PRESETS.values()]
        elif name == LOCAL:
            found += [Wanted(local) for local in LOCAL_TASKS]
        elif prefix == PREFIX and colon:
            if rest not in PRESETS:
                raise ValueError(
                    f"{option} has {name!r}{_nearest(rest, list(PRESETS))}; {PREFIX}: goes with "
                    f"{', '.join(PRESETS)}"
                )
            found.append(_of_preset(PRESETS[rest]))
        else:
            found.append(Wanted(name))
    if not found:
        raise ValueError(f"{option} is empty; a task is needed: {LISTING} tells them")
    return list(dict.fromkeys(found))


def check_known(wanted: Sequence[Wanted], known: Sequence[str], option: str = "--tasks") -> None:
    """Raise ValueError for a task that is neither local nor among the harness's."""
    for task in wanted:
        if not task.is_local and task.name not in known:
            near = _nearest(task.name, [*known, *LOCAL_TASKS])
            raise ValueError(
                f"{option} has {task.name!r}, which the harness does not know{near}; {LISTING} "
                "tells presets and local tasks, `lm-eval ls tasks` all others"
            )


def check_code_is_allowed(name: str) -> None:
    """Raise ValueError unless it is allowed to run what a model has written."""
    if os.environ.get(ALLOW_CODE) != "1":
        raise ValueError(
            f"task {name!r} runs code that the model has written; set {ALLOW_CODE}=1 to allow it, "
            "best in a container without a network"
        )


def _of_preset(preset: Preset) -> Wanted:
    return Wanted(preset.task, preset.shots, preset)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""

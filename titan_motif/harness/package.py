"""What is used of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

The only file that imports `lm_eval`.
"""

import functools
import importlib.metadata

import lm_eval.api.task
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate as evaluate_by_harness
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

__all__ = [
    "VERSION",
    "Instance",
    "TaskManager",
    "TemplateLM",
    "evaluate_by_harness",
    "get_rolling_token_windows",
    "make_disjoint_window",
    "normalize_gen_kwargs",
]

VERSION = importlib.metadata.version("lm_eval")
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=None)  # no bars in the log of a run

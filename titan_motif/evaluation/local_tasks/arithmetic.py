"""`arithmetic`: word problems as those of the built-in corpus, none of which it holds."""

import re
from itertools import islice
from typing import Any

from titan_motif.corpus import mathematics
from titan_motif.evaluation.local_tasks.held_out import corpus_problems
from titan_motif.evaluation.local_tasks.setting import Setting, Task, in_memory, mean_of

NUM_PROBLEMS = 200
NUM_SHOTS = 2
SEED = 1_000_003


def task(setting: Setting) -> Task:
    """Return the task: 2 solved problems before each, in a chat none."""
    rows = held_out_problems()
    return {
        "task": "arithmetic",
        "custom_dataset": in_memory(test=rows[:NUM_PROBLEMS], shots=rows[NUM_PROBLEMS:]),
        "test_split": "test",
        "fewshot_split": "shots",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": None if setting.is_chat else NUM_SHOTS,
        "output_type": "generate_until",
        "doc_to_text": question_in_a_chat if setting.is_chat else question,
        "doc_to_target": worked_answer,
        "target_delimiter": "\n",
        "generation_kwargs": {
            "until": ["\n\n", "Question:"],
            "max_gen_toks": 160,
            "do_sample": False,
        },
        "process_results": judge,
        "metric_list": mean_of("exact_match"),
        "metadata": {"version": 1},
    }


def held_out_problems() -> list[dict[str, str]]:
    """Return 200 problems and some more to show, each as question, steps and answer."""
    fresh = (p for p in mathematics.generate(SEED) if p not in corpus_problems())
    return [_parts(problem) for problem in islice(fresh, NUM_PROBLEMS + 16)]


def _parts(problem: str) -> dict[str, str]:
    question_line, _, worked = problem.partition("\n")
    (number,) = re.findall(r"Answer: (-?\d+)\.$", problem)
    return {
        "question": question_line.removeprefix("Question: "),
        "worked": worked,
        "answer": number,
    }


def question(problem: dict[str, str]) -> str:
    """Return a problem as a text that goes on with its answer."""
    return f"Question: {problem['question']}"


def question_in_a_chat(problem: dict[str, str]) -> str:
    """Return a problem as a user's message."""
    return problem["question"]


def worked_answer(problem: dict[str, str]) -> str:
    """Return the steps and the answer."""
    return problem["worked"]


def judge(problem: dict[str, str], replies: list[str]) -> dict[str, Any]:
    """Return whether the reply's first `Answer: N.` has the right number."""
    found = re.search(r"Answer: (-?\d+)\.", replies[0])
    return {"exact_match": float(found is not None and found[1] == problem["answer"])}

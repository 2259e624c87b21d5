"""`sums`: additions of numbers of one and two digits that are kept for evaluation."""

import re
from typing import Any

from titan_motif.corpus.sums import NUM_ASKED, split_sums
from titan_motif.corpus.sums import question as asked
from titan_motif.evaluation.local_tasks.held_out import corpus_questions
from titan_motif.evaluation.local_tasks.setting import Setting, Task, in_memory, mean_of

NUM_SHOTS = 4


def task(setting: Setting) -> Task:
    """Return the task: 4 solved sums before each, in a chat none."""
    rows = held_out_sums()
    return {
        "task": "sums",
        "custom_dataset": in_memory(test=rows[:NUM_ASKED], shots=rows[NUM_ASKED:]),
        "test_split": "test",
        "fewshot_split": "shots",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": None if setting.is_chat else NUM_SHOTS,
        "output_type": "generate_until",
        "doc_to_text": question_in_a_chat if setting.is_chat else question,
        "doc_to_target": answer,
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False},
        "process_results": judge,
        "metric_list": mean_of("exact_match"),
        "metadata": {"version": 1},
    }


def held_out_sums() -> list[dict[str, int]]:
    """Return 200 sums and some more to show, no two alike, none of them in the built-in corpus."""
    seen, (_, held_out) = corpus_questions(), split_sums()
    found = [{"a": a, "b": b} for a, b in held_out if f"Question: {asked(a, b)}" not in seen]
    return found[: NUM_ASKED + NUM_SHOTS]


def question(sum_: dict[str, int]) -> str:
    """Return a sum as a text that goes on with its answer."""
    return f"Question: {asked(sum_['a'], sum_['b'])}\nAnswer:"


def question_in_a_chat(sum_: dict[str, int]) -> str:
    """Return a sum as a user's message."""
    return asked(sum_["a"], sum_["b"])


def answer(sum_: dict[str, int]) -> str:
    """Return the sum's answer."""
    return f"{sum_['a'] + sum_['b']}."


def judge(sum_: dict[str, int], replies: list[str]) -> dict[str, Any]:
    """Return whether the last number in the first line of the reply is the sum."""
    lines = replies[0].strip().splitlines() or [""]
    numbers = re.findall(r"-?\d+", lines[0])
    return {"exact_match": float(numbers[-1:] == [str(sum_["a"] + sum_["b"])])}

"""How many of the tasks' held-out problems a model gets right, by task and difficulty."""

from pathlib import Path

from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.saved_steps import step_to_begin_from
from titan_motif.evaluation.loading import dtype_named, load_model, usable_device
from titan_motif.evaluation.scoring import Pair, score
from titan_motif.evaluation.sums import Accuracy
from titan_motif.experiments.tasks import TASKS

BATCH = 250


def ask(run: Path, tokenizer_folder: Path, num: int, device: str) -> dict[str, dict[str, Accuracy]]:
    """Ask the newest step of a run held-out problems: {task: {difficulty: accuracy}}.

    An answer is right if each of its tokens, the full stop included, is the likeliest one after
    those before it: the greedy continuation is then the answer. Before the problem stands the
    token that ends documents, as in training.

    Args:
        num: of each difficulty
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    pairs: list[Pair] = []
    for task in TASKS:
        for difficulty in task.difficulties:
            for problem in task.held_out(difficulty, num):
                question, answer = problem.questions[0]
                asked = tokenizer.encode(problem.context + question)
                answered = tokenizer.encode(answer)
                pairs.append(([tokenizer.end_id, *asked], answered))
    dtype = dtype_named("auto", usable_device(device))
    model = load_model(step_to_begin_from(run / "checkpoint"), device=device, dtype=dtype)
    scores = iter(score(model, pairs, BATCH, max(len(a) + len(b) for a, b in pairs)))
    return {
        task.name: {
            str(difficulty): Accuracy(sum(next(scores).is_greedy for _ in range(num)), num)
            for difficulty in task.difficulties
        }
        for task in TASKS
    }

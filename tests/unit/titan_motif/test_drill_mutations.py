"""The drill's mutations: all of them are held, and a loader that trusts its files is found out."""

import os
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from whole_runs import ROOT, run

from titan_motif.drill.mutation_kinds import KINDS
from titan_motif.drill.mutations import STEPS
from titan_motif.drill.small_job import small_job

ONE_LAYER = "--model.args.n_layers=1"


@pytest.fixture(scope="module")
def shared(rank_pool, tmp_path_factory) -> Path:
    """The folder of a job and of what it has saved, on two ranks."""
    folder = tmp_path_factory.mktemp("drill") / "small"
    settings = [f"--job.config_file={small_job(folder)}", f"--job.dump_folder={folder / 'saved'}"]
    rank_pool.run(run, 2, [*settings, ONE_LAYER], str(ROOT))
    (folder / "saved" / "done").touch()
    return folder


def cases(shared: str, folder: str, numbers: list[int], trusts: bool) -> list[tuple[bool, str]]:
    """Run cases on this rank; `trusts` leaves out every check of the product's."""
    import gc

    from titan_motif.drill import mutations
    from titan_motif.drill.step_loader import StepLoader

    os.makedirs(folder)
    loader = StepLoader(small_job(Path(shared)), Path(folder), [ONE_LAYER])
    try:
        saved = mutations.load_saved(loader, mutations.save_run(Path(shared)))
        with ExitStack() as patches:
            for name in ("checkpoint.content_problem", "saved_steps._step_problem"):
                if trusts:
                    place = f"titan_motif.components.{name}"
                    patches.enter_context(mock.patch(place, return_value=None))
            found = [
                mutations.run_case(number, Path(folder) / str(number), loader, saved)
                for number in numbers
            ]
        return [tuple(outcome) for outcome in found]
    finally:
        loader.close()
        gc.enable()


def test_every_kind_of_mutation_is_held(rank_pool, shared: Path, tmp_path: Path):
    numbers = list(range(len(KINDS) + 8))
    (found,) = rank_pool.run(cases, 1, str(shared), str(tmp_path / "cases"), numbers, False)
    assert [told for is_held, told in found if not is_held] == []
    told = " ".join(told for _, told in found)
    assert all(f"loaded step {step}" in told for step in STEPS)


def test_a_loader_that_trusts_its_files_is_found_out(rank_pool, shared: Path, tmp_path: Path):
    """The first kinds: flipped, cut off, added to, zeroed, noise, and no seal."""
    numbers = [*range(6), 32]
    (found,) = rank_pool.run(cases, 1, str(shared), str(tmp_path / "cases"), numbers, True)
    missed = [told for is_held, told in found if not is_held]
    assert len(missed) > 3
    assert any("step 15 was loaded, and " in told for told in missed)

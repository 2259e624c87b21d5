"""torchtitan's checkpoint manager, in which only sealed steps count.

The manager of torchtitan 0.2.2 counts every directory with "step-N" in its name when it keeps the
last k, so that partial saves can push good ones out; starts from random weights where it was told
to load and finds only a partial step; stops nobody from leaving while an asynchronous save still
runs; and loads whatever bytes lie there, unpickling them. This one seals each step when all of it
is written (`seal.py`), reads it whole against its seal before loading, unpickles nothing
(`dcp_reader.py`), and says what it does.
"""

import re
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torchtitan.components.checkpoint import DATALOADER, MODEL, AsyncMode, CheckpointManager
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import GarbageCollection

from titan_motif.components.dcp_metadata import read_metadata
from titan_motif.components.dcp_reader import CheckedPlanner, CheckedReader
from titan_motif.components.saved_steps import (
    SavedStep,
    beginning_problem,
    is_safetensors,
    saved_steps,
    space_problem,
    step_to_begin_from,
)
from titan_motif.components.seal import (
    begin_writing,
    break_seal,
    content_problem,
    is_sealed,
    seal_folder,
)
from titan_motif.components.sealing_writer import SealingWriter
from titan_motif.components.stop_request import kept_from_new_processes

_DELETING = ".deleting-"
_TRAIN_STATE = "train_state"
_MISSING_OPTIMIZER_STATE = re.compile(r"Missing key in checkpoint state_dict: optimizer\.")

LITTLE_ROOM_BYTES = 10**8
"""What is left on a disk, if it may be why a save has failed."""

_ANY_FAILURE = (Exception, CheckpointException)
"""Damaged files raise anything, on one rank or on all; DCP's own error is no Exception."""


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for cannot be loaded or saved; its text is one line."""


class DifferentDataError(CheckpointError):
    """A whole checkpoint whose position in the data means nothing under this configuration."""


class _Loader:
    """The data loader as DCP loads it: that it refuses a position is told apart from damage."""

    def __init__(self, loader: Any) -> None:
        self.state_dict, self._load = loader.state_dict, loader.load_state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self._load(state_dict)
        except ValueError as error:
            raise DifferentDataError(str(error)) from error


class CompleteStepCheckpointManager(CheckpointManager):
    """torchtitan's manager; only complete steps are continued from and counted.

    `resumed_from` is the step that a run continues from, None for a run from its first step.
    """

    before_save: Callable[[int], None] = staticmethod(lambda step: None)
    """Is called with a step that is about to be saved; what it raises leaves the save out."""
    optional_states: frozenset[str] = frozenset()
    """Names of states that a checkpoint may lack: they then begin anew."""
    resumed_from: int | None = None
    _saving_step: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.enable:
            return
        self.states[DATALOADER] = _Loader(self.states[DATALOADER])
        if dist.get_rank() == 0:
            for leftover in Path(self.folder).glob(f"{_DELETING}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    # ---- what is there

    def wait(self) -> None:
        """Wait for an asynchronous save that still runs."""
        if self.save_future is not None:
            self._async_wait()
            self.save_future = None

    def saved_steps(self) -> list[SavedStep]:
        """Return the run's saved steps, newest first, the same on all ranks."""
        return _from_first_rank(lambda: saved_steps(self.folder))

    def content_problem(self, path: str) -> str | None:
        """Read a sealed step, each rank its share; return what has changed, on all ranks."""
        problem = content_problem(Path(path), dist.get_rank(), dist.get_world_size())
        return next((problem for problem in _from_all_ranks(problem) if problem), None)

    # ---- loading

    @torch.no_grad()
    def load(self, step: int = -1) -> bool:
        """Load `step`, or the newest complete one (-1), or what the run was told to begin from.

        Returns: whether anything was loaded; every rank decides alike
        Raises:  CheckpointError if something was to be loaded and cannot be
        """
        if not self.enable:
            return False
        steps = self.saved_steps()
        if step != -1:
            return self._load_wanted(step, steps)
        if steps and all(saved.is_unfinished for saved in steps):
            names = ", ".join(f"step-{saved.step}" for saved in steps)
            logger.warning(
                f"checkpoint: {names}: the run was cut off in its first save, which held nothing "
                "whole yet; it begins as at first"
            )
            steps = []
        if not steps:
            return self._load_initial()
        self._load_newest(steps)
        return True

    def _load_wanted(self, step: int, steps: list[SavedStep]) -> bool:
        found = {saved.step: saved for saved in steps}.get(step)
        if found is None or found.problem:
            complete = [saved.step for saved in steps if not saved.problem]
            problem = found.problem if found else "does not exist"
            raise CheckpointError(
                f"{self.folder}: step-{step} {problem}; complete steps: "
                f"{', '.join(map(str, sorted(complete))) or 'none'}"
            )
        failure = self._try_to_load(found)
        if failure:
            raise CheckpointError(f"{found.path}: {failure}")
        return True

    def _load_newest(self, steps: list[SavedStep]) -> None:
        """Load the newest step that can be loaded, naming each newer one that cannot."""
        problems = []
        for saved in steps:
            if saved.problem:
                problem = saved.problem
            elif saved.is_model_only and saved.step != 0:  # step 0 is a seed checkpoint
                problem = "holds the model alone and cannot be continued from"
            else:
                problem = self._try_to_load(saved)
            if not problem:
                return
            problems.append(f"step-{saved.step} {problem}")
            logger.warning(f"checkpoint: {problems[-1]}; trying the step before it")
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        hint = "Remove the folder to begin anew"
        if any(_MISSING_OPTIMIZER_STATE.search(problem) for problem in problems):
            hint = (
                "Another optimizer, or another routing, wrote it: "
                'checkpoint.exclude_from_loading = ["optimizer"] keeps the weights and begins its '
                "state anew"
            )
        raise CheckpointError(
            f"{self.folder}: no step can be continued from: {'; '.join(problems[:3])}{more}. {hint}"
        )

    def _try_to_load(self, saved: SavedStep) -> str | None:
        """Load a step; return why it failed on any rank, or None."""
        failure = self._failure_to_load(saved.path, saved.is_model_only)
        failure = failure or self._name_problem(saved)
        if failure is None:
            self.resumed_from = saved.step
            logger.info(f"continuing from step {saved.step} ({saved.path})")
            return None
        return failure

    def _name_problem(self, saved: SavedStep) -> str | None:
        """Return that the step that was just loaded is not the one that its folder names."""
        if saved.is_model_only or _TRAIN_STATE in self.exclude_from_loading:
            return None
        step = self.states[_TRAIN_STATE].state_dict()["step"]
        return None if step == saved.step else f"holds step {step}: it was renamed or copied"

    def _failure_to_load(
        self, path: str, model_only: bool, from_hf: bool = False, from_quantized: bool = False
    ) -> str | None:
        """Load a directory; return why it failed on any rank, or None.

        Raises: DifferentDataError on all ranks, if one rank's loader refuses its position
        """
        if not from_hf or is_sealed(Path(path)):
            problem = self.content_problem(path)
            if problem:
                return problem
        failure = None
        try:
            states = self._states_to_load(model_only)
            if missing := self._missing_states(path, states.keys() & self.optional_states):
                logger.info(f"checkpoint: {path} has no {', '.join(sorted(missing))}: begun anew")
                states = {name: state for name, state in states.items() if name not in missing}
            self.dcp_load(states, path, from_hf=from_hf, from_quantized=from_quantized)
        except _ANY_FAILURE as error:
            failure = error if isinstance(error, DifferentDataError) else _one_line(error)
        failures = [failure for failure in _from_all_ranks(failure) if failure is not None]
        for failure in failures:
            if isinstance(failure, DifferentDataError):
                raise DifferentDataError(
                    f"{path}: {failure}. Set debug.seed, the data and their lengths "
                    f"(training.seq_len, or the phases) as they were; or read the data from its "
                    f"beginning with "
                    f'checkpoint.exclude_from_loading = ["{DATALOADER}"]; or begin another run in '
                    f"another job.dump_folder"
                )
        return f"failed to load ({failures[0]})" if failures else None

    @staticmethod
    def _missing_states(path: str, wanted: Set[str]) -> set[str]:
        """Return which of some states a step of DCP's format does not hold."""
        if not wanted:
            return set()
        entries = read_metadata(Path(path)).state_dict_metadata
        return {name for name in wanted if not any(e.startswith(f"{name}.") for e in entries)}

    def _load_initial(self) -> bool:
        path = self.initial_load_path
        if path is None and self.initial_load_in_hf and self.sd_adapter is not None:
            path = self.sd_adapter.hf_assets_path
        if path is None:
            logger.info(f"no checkpoint in {self.folder}: starting from the first step")
            return False
        if self.initial_load_in_hf and not self.initial_load_model_only:
            raise CheckpointError(
                "checkpoint.initial_load_in_hf loads the model alone; set "
                "checkpoint.initial_load_model_only"
            )
        if is_safetensors(Path(path)) and not self.initial_load_in_hf:
            raise CheckpointError(f"{path}: holds safetensors; set checkpoint.initial_load_in_hf")
        path = _from_first_rank(lambda: step_to_begin_from(path))
        constants_problem = getattr(self.sd_adapter, "constants_problem", lambda folder: None)
        problem = _from_first_rank(lambda: beginning_problem(path) or constants_problem(Path(path)))
        if problem:
            raise CheckpointError(f"{path}: the checkpoint to begin from {problem}")
        failure = self._failure_to_load(
            path,
            self.initial_load_model_only,
            from_hf=self.initial_load_in_hf,
            from_quantized=self.initial_load_in_hf_quantized,
        )
        if failure:
            raise CheckpointError(f"{path}: {failure}")
        logger.info(f"beginning from the weights of {path}")
        return True

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        """Load as torchtitan does, but run no pickle of the directory."""
        if from_hf:
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        reader, planner = CheckedReader(checkpoint_id), CheckedPlanner()
        dcp.load(state_dict, storage_reader=reader, planner=planner)
        if MODEL in self.states:  # its tensors stand in the state by their own names
            self.states[MODEL].load_state_dict(state_dict)

    # ---- saving

    @torch.no_grad()
    def save(self, curr_step: int, last_step: bool = False) -> None:
        """Save if the step is due; an earlier asynchronous save that failed is raised here."""
        if not self._should_save(curr_step, last_step):
            return
        self._async_wait()
        self.before_save(curr_step)
        self._saving_step = curr_step
        path = self._create_checkpoint_id(curr_step)
        # An old directory of this step would lend its files to a save that does not finish.
        if _from_first_rank(lambda: Path(path).exists() and self._set_aside(path)):
            logger.info(f"checkpoint: replacing {path}")
        left = _from_first_rank(lambda: self._leave_newer_steps(curr_step))
        if left:
            logger.warning(
                f"checkpoint: {', '.join(left)} are of a run that had gone further than step "
                f"{curr_step}; they are called .abandoned from here on"
            )
        super().save(curr_step, last_step)
        if last_step:
            self._purge_stale_checkpoints()

    def save_now(self, step: int) -> bool:
        """Save a whole step, due or not; return, once it is sealed, whether there is one."""
        if not self.enable or self.load_only:
            return False
        if step not in (self._saving_step, self.resumed_from):
            interval, self.interval = self.interval, 1
            try:
                self.save(step)
            finally:
                self.interval = interval
        self.wait()
        return True

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """Save and seal; CheckpointError on all ranks if the disk has not the room."""
        problem = _from_first_rank(lambda: space_problem(Path(checkpoint_id), state_dict))
        if problem:
            raise CheckpointError(f"saving step {self._saving_step}: {problem}")
        _from_first_rank(lambda: begin_writing(Path(checkpoint_id)))
        if to_hf:
            super().dcp_save(
                state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf
            )
            _from_first_rank(lambda: self._write_beside(Path(checkpoint_id)))
            _from_first_rank(lambda: seal_folder(Path(checkpoint_id)))
            return None
        _from_first_rank(lambda: self._write_beside(Path(checkpoint_id)))
        writer = SealingWriter(checkpoint_id)
        if async_mode == AsyncMode.ASYNC:
            # Named, since the writer's own stager does not copy what is on a CPU.
            stager = DefaultStager(StagingOptions(False, False, False, False))
            future = dcp.async_save(
                state_dict, storage_writer=writer, process_group=self.pg, async_stager=stager
            )
            future.add_done_callback(lambda _: stager.close())
            return future
        if async_mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
            with kept_from_new_processes():  # the first save starts the process that writes
                return dcp.async_save(
                    state_dict,
                    storage_writer=writer,
                    process_group=self.pg,
                    async_checkpointer_type=AsyncCheckpointerType.PROCESS,
                    async_stager=self.stager,
                )
        try:
            dcp.save(state_dict, storage_writer=writer)
        except _ANY_FAILURE as error:
            raise self._failed(error) from error
        if enable_garbage_collection:
            GarbageCollection.collect("after a checkpoint")
        return None

    def _write_beside(self, folder: Path) -> None:
        """Write what tells the network; it is sealed with the tensors."""
        for name, text in getattr(self.sd_adapter, "files_beside", dict)().items():
            (folder / name).write_text(text, encoding="utf-8")

    def _async_wait(self) -> None:
        try:
            super()._async_wait()
        except _ANY_FAILURE as error:
            self.save_future = None
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> CheckpointError:
        told = f"saving step {self._saving_step} failed: {_one_line(error)}"
        free = shutil.disk_usage(Path(self.folder).absolute().parent).free
        if free < LITTLE_ROOM_BYTES:  # torch's own message may not tell of it
            told += f"; {free / 1e6:,.1f} MB are left for {self.folder}"
        return CheckpointError(told)

    def _purge_stale_checkpoints(self) -> None:
        """Remove all but the newest k complete steps, and partial ones older than the newest."""
        if self.keep_latest_k == 0 or dist.get_rank() != 0:
            return
        steps = saved_steps(self.folder)
        complete = [saved for saved in steps if not saved.problem]
        if not complete:
            return
        # The step that is being saved has no seal yet, and is nothing to be removed.
        over = [s for s in steps if s.problem and s.step != self._saving_step]
        partial = [s for s in over if s.step < complete[0].step]
        for saved in [*complete[self.keep_latest_k :], *partial]:
            self._set_aside(saved.path)

    def _leave_newer_steps(self, step: int) -> list[str]:
        """Rename what is newer than a step that is saved: a restart would go on from there."""
        newer = [Path(saved.path) for saved in saved_steps(self.folder) if saved.step > step]
        for path in newer:
            name, number = f"{path.name}.abandoned", 1
            while path.with_name(name).exists():
                number += 1
                name = f"{path.name}.abandoned-{number}"
            path.rename(path.with_name(name))
        return [path.name for path in newer]

    def _set_aside(self, path: str) -> bool:
        """Rename a step, so that it never looks whole while its files go, and let it be removed."""
        break_seal(Path(path))
        doomed = Path(path).with_name(f"{_DELETING}{Path(path).name}")
        shutil.rmtree(doomed, ignore_errors=True)
        Path(path).rename(doomed)
        if self.purge_thread is None:
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            self.purge_queue.put(str(doomed))
        return True

    def close(self) -> None:
        """Wait for a running save, so that no process leaves a half-written step behind."""
        try:
            if getattr(self, "enable", False) and getattr(self, "save_future", None) is not None:
                self.wait()
        finally:
            super().close()


def _one_line(error: BaseException) -> str:
    """The innermost message: DCP wraps what each rank raised, with tracebacks, in one text."""
    inner = error
    failures = getattr(error, "failures", None)  # torch's CheckpointException
    if failures:
        inner = next(iter(failures.values()))[0]
    lines = str(inner).strip().splitlines() or [""]
    return f"{type(inner).__name__}: {lines[0]}"


def _from_first_rank(produce: Callable[[], Any]) -> Any:
    """Return on every rank what rank 0 finds on disk, so that all decide alike, or raise as it."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [(produce(), None)]
        except (OSError, ValueError) as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0)
    found, error = box[0]
    if error is not None:
        raise CheckpointError(_one_line(error)) from error
    return found


def _from_all_ranks(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

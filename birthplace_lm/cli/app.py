"""`birthplace-lm train`: run a job or a sweep through Hydra; validate everything before torch is imported."""

import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from birthplace_lm.cli import session, sweep
from birthplace_lm.cli.gpu_slots import claim_gpu
from birthplace_lm.cli.search import searches
from birthplace_lm.cli.streams import protect_standard_streams
from birthplace_lm.config.compose import check_no_sweep, resolve_and_validate
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.config.messages import to_input_error
from birthplace_lm.config.overrides import checked_overrides
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError, Interrupted
from birthplace_lm.runs import signals
from birthplace_lm.runs.find import find_run
from birthplace_lm.runs.identity import run_directory
from birthplace_lm.runs.metrics import RunMetrics, Score
from birthplace_lm.runs.nearest import nearest_run
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.distributed.cluster import Placement

if TYPE_CHECKING:
    from birthplace_lm.training.plan import StagePlan

INFO, INFO_CHOICES = ("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

log = logging.getLogger("birthplace_lm")
OPTIONS_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd",
                      "--config-dir", "--experimental-rerun")  # fmt: skip


def run(config: DictConfig) -> float | None:
    """Check everything, then train.

    Returns:
        The objective that a sweeper can maximise: exact match on the held-out rows, or on dev if no rows
        are held out; 0 for a dry run; None after an error.

    Raises:
        BirthplaceError: in a sweep whose table is in another process, so that the job counts as failed there.
    """
    state = session.current()
    settings = HydraConfig.get()
    if settings.job.chdir:  # paths are relative to where the command was typed, whatever launches the job
        os.chdir(settings.runtime.cwd)
    if not signals.installed() and threading.current_thread() is threading.main_thread():
        signals.install()  # a launcher has started this process
        protect_standard_streams()
        state.started_by_launcher = True
        if config.trainer.devices == 1:
            state.gpu_lock = claim_gpu()
        if (placement := cluster.claim()) is not None:
            results: list[float | None] = []
            _as_rank(placement, lambda: results.append(_run_job(config)))
            if not results and state.errors:
                raise state.errors[0]  # otherwise the launcher would count the job as completed
            return next(iter(results), None)
    return _run_job(config)


def _run_job(config: DictConfig) -> float | None:
    state, job = session.current(), HydraConfig.get()
    if state.started_by_launcher:  # the bars of jobs side by side would overwrite each other
        merged: Any = OmegaConf.merge(config, {"trainer": {"enable_progress_bar": False}})
        config = merged
    if state.errors and signals.pending_signal() is not None:
        return None  # reported already; Hydra still starts the other jobs of the sweep
    elsewhere = job.mode == RunMode.MULTIRUN and not state.jobs  # one of several processes
    _log_to_console(f"job {job.job.num}: " if elsewhere else "")
    try:
        return _run(config)
    except Exception as error:
        failure = error
        if not isinstance(failure, BirthplaceError):
            failure = sweep.unexpected(error)
        state.report_error(failure, show_traceback=bool(config.get("traceback")))
        if job.mode == RunMode.MULTIRUN and not state.record_job_failure(job.job.num, failure):
            raise failure from error
        if state.jobs and isinstance(failure, Interrupted):
            raise sweep.SweepStopped from error  # Hydra would go on and list the other jobs as launched
        return None  # for a raised error, Hydra would print more than one line


def main(arguments: Sequence[str]) -> int:
    """Run `birthplace-lm train ARGUMENTS`, a job or a sweep. Returns the exit code."""
    protect_standard_streams()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # we print errors ourselves, in one line
    if (placement := cluster.claim()) is None:
        return _main(arguments)
    code = _as_rank(placement, lambda: _main(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's own threads sometimes abort a process that tidies up before it ends


def _as_rank(placement: Placement, work: Callable[[], object]) -> int:
    """Do the work as rank 0, or take part in its training as another rank; the exit code of this process."""
    from birthplace_lm.training.distributed import group  # torch takes seconds to import
    from birthplace_lm.training.worker import train_stage_from_json

    state = session.current()
    try:
        group.join(placement)
        if placement.rank > 0:
            return group.run_worker_loop(train_stage_from_json)
    except BirthplaceError as error:
        # Rank 0 reports for its host, and the first process of each other host for that.
        state.report_error(error) if placement.local_rank == 0 else state.record_error(error)
        return state.exit_code()
    ended = False
    try:
        work()
        ended = True
    finally:
        group.end_others(state.exit_code() or int(not ended), next(iter(state.errors), None))
    return state.exit_code()


def _main(arguments: Sequence[str]) -> int:
    state = session.current()
    try:
        sys.argv[1:] = checked_overrides(options_first(arguments))  # Hydra reads them there
    except InputError as error:
        state.report_error(error)
        return state.exit_code()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(run)()
    except BirthplaceError as error:  # of a job in another process
        state.report_error(error) if state.jobs_log_to_files else state.record_error(error)
    except sweep.SweepRejected as rejected:
        state.report_error(rejected.error, rejected.show_traceback)
    except sweep.SweepStopped:
        pass  # reported by the job
    except Exception as error:  # Hydra's, before a job begins: a job reports its own errors
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and state.jobs):
            where = "; a sweep writes into hydra.sweep.dir, by default runs_root" if state.jobs else ""
            state.report_error(CheckpointError(f"{error.filename}: {error.strerror}{where}"))
        else:
            state.report_error(to_input_error(error))
    sweep.collect_failures(state)
    if state.jobs:
        from birthplace_lm.analysis.report.tables import show  # a single run does not pay for the import

        show(sweep.table(state.jobs, paths=not sys.stdout.isatty()))
        _show(sweep.common_facts(state.jobs))
    return state.exit_code()


def options_first(arguments: Sequence[str]) -> list[str]:
    """Move overrides behind the options: Hydra's parser does not read `seed=1 -m model=tiny`."""
    options: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        before = options[-1] if options else ""
        takes_value = before in OPTIONS_WITH_VALUE or (before in INFO and argument in INFO_CHOICES)
        (options if argument.startswith("-") or takes_value else overrides).append(argument)
    if options and options[-1] in INFO:  # otherwise it would take the first override
        options.append("all")
    return options + overrides


def _run(config: DictConfig) -> float | None:
    signals.raise_if_signalled("before it began")
    if HydraConfig.get().mode == RunMode.RUN:
        check_no_sweep(HydraConfig.get())
    directory, corpus, notes = find_run(resolve_and_validate(config))
    config = directory.config
    metrics = None if config.overwrite else directory.metrics
    if HydraConfig.get().mode == RunMode.RUN and not directory.status and (note := nearest_run(config)):
        log.info("%s", note)
    if config.dry_run:
        for reason in notes:
            log.info("%s", reason)
        from birthplace_lm.training.preflight import preflight  # torch and lightning take seconds to import

        state = "to do" if metrics is None else "finished"
        plans = preflight(config, corpus)
        for warning in (
            *corpus.warnings,
            *(f"{plan.name}: {text}" for plan in plans for text in plan.warnings),
        ):
            log.warning("%s", warning)
        stages = {plan.name: _describe(plan, config.overwrite) for plan in plans}
        cost = _cost(plans, corpus, config.overwrite) if metrics is None else {}
        _show({"run": f"{directory.path}, {state}", "data": corpus.notes[0], **stages, **cost})
        return 0.0  # a number, for sweepers that search
    if metrics is None:
        from birthplace_lm.training.pipeline import (
            run as run_pipeline,  # torch and lightning take seconds to import
        )

        signals.raise_if_signalled("before it began")
        typed = [*HydraConfig.get().overrides.task]
        wait = searches(HydraConfig.get())
        metrics = run_pipeline(config, corpus, wait=wait, notes=notes, overrides=typed)
    if HydraConfig.get().mode == RunMode.RUN:
        _show(_summary(metrics, config))
    else:  # the table behind the last job has the rest
        print(f"dev exact match  {_score(metrics.dev)}, in {directory.path}")
    return (metrics.holdout or metrics.dev).exact_match


def _describe(plan: "StagePlan", overwrite: bool) -> str:
    from birthplace_lm.training.stage import steps_done  # torch takes seconds to import

    size = f"{plan.trainer['max_epochs']} epochs, {plan.total_steps} steps, {plan.describe_step()}"
    steps = steps_done(plan, overwrite)
    done = f", {steps} of them done" if steps else ""
    return f"{size}{done}, in {plan.directory}"


def _cost(plans: "list[StagePlan]", corpus: Corpus, overwrite: bool) -> dict[str, str]:
    from birthplace_lm.training.estimate import estimate  # torch takes seconds to import

    if (cost := estimate(plans, corpus, overwrite)) is None:
        return {"time": "not estimated: only for one process on a CPU"}
    duration = tqdm.format_interval(cost.seconds)
    return {
        "time": f"about {duration} of training, from {cost.steps} measured steps; validations come on top",
        "memory": f"{cost.peak_bytes / 2**30:.1f} GiB at the peak of these steps",
    }


def _summary(metrics: RunMetrics, config: DictConfig) -> dict[str, Any]:
    path = run_directory(config)
    root = shlex.quote(str(config.runs_root if config.run_dir is None else path))
    plugins = "".join(f" --plugin {package}" for package in config.plugins)
    return {
        "model": f"{metrics.attention}, {metrics.parameters:,} parameters",
        "pretraining": metrics.pretrain,
        **({} if config.init_from is None else {"weights from": config.init_from}),
        **({} if metrics.extended_from is None else {"extended from": metrics.extended_from}),
        "dev exact match": _score(metrics.dev),
        f"always {metrics.majority_answer!r}": _score(metrics.baseline),
        "run directory": path,
        **({"curves": f"birthplace-lm tensorboard {root}"} if "tensorboard" in config.logger else {}),
        "ask it": f'birthplace-lm ask {shlex.quote(str(path))} "NAME"{plugins}',
    }


def _score(score: Score) -> str:
    return f"{score.correct} of {score.total}: {score.exact_match:.1%}"


def _show(rows: dict[str, Any]) -> None:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _log_to_console(prefix: str) -> None:
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.INFO)
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        logging.captureWarnings(True)
        for name in ("lightning.pytorch", "py.warnings"):
            logging.getLogger(name).propagate = False  # into log.txt, not onto the screen
        threading.excepthook = _log_thread
    log.handlers[0].setFormatter(logging.Formatter(f"{prefix}%(message)s"))


def _log_thread(ended: threading.ExceptHookArgs) -> None:
    """Log the error of a thread: TensorBoard's writer fails on a full disk; the run reports it."""
    error = ended.exc_value or ended.exc_type()
    log.debug("%s: %s", ended.thread, error, exc_info=error)

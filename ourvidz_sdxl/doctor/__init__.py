"""`worker.py doctor`: is everything there that the worker needs? Each fault comes with its mend.

It leaves nothing behind that anybody could take for work or for a worker: its row of `workers` is deleted again, and it claims for
a target that nobody inserts jobs for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
from rich.console import Console

from ourvidz_sdxl.doctor.finding import Finding, State, fail, ok, skip
from ourvidz_sdxl.doctor.key import check_key
from ourvidz_sdxl.doctor.machine import check_disk, check_engine, check_gpu, check_image_check, check_model
from ourvidz_sdxl.doctor.supabase import (
    check_address,
    check_buckets,
    check_clock,
    check_functions,
    check_migrations,
    check_realtime,
)
from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.settings import Settings

ONLINE: Mapping[str, Callable[[Settings], Finding]] = {
    "migrations": check_migrations,
    "queue functions": check_functions,
    "buckets": check_buckets,
    "realtime": check_realtime,
    "clock": check_clock,
}
ON_THIS_MACHINE: Mapping[str, Callable[[Settings], Finding]] = {
    "model": check_model,
    "engine": check_engine,
    "gpu": check_gpu,
    "disk": check_disk,
    "image check": check_image_check,
}


BEFORE_THE_MODEL = (check_key, check_address, check_migrations, check_buckets)

log = structlog.get_logger()


def refuse_what_waiting_will_not_mend(settings: Settings) -> None:
    """Makes the checks that take a moment, side by side, before a worker loads its model.

    Raises SettingsInvalid with what is wrong and its mend: a rejected key, an older database, missing buckets. A Supabase that
    is away is waited for later.
    """
    with ThreadPoolExecutor(len(BEFORE_THE_MODEL)) as threads:
        findings = [*threads.map(lambda check: check(settings), BEFORE_THE_MODEL)]
    for finding in findings:
        if finding.state is State.FAIL and not finding.passing:
            raise SettingsInvalid(f"{finding.words} {finding.mend}")
        if finding.state is State.FAIL:
            log.warning("supabase_not_checked", reason=finding.words)


def examine(environ: Mapping[str, str], *, as_json: bool = False) -> int:
    """Prints one line for each check, or one JSON object; returns 0 when nothing is wrong, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    findings: dict[str, Finding] = {}

    def found(name: str, finding: Finding) -> Finding:
        findings[name] = finding
        if not as_json:
            console.print(finding.line(name), markup=False)
        return finding

    try:
        settings = Settings.from_env(environ)
    except SettingsInvalid as error:
        found("settings", fail(str(error), "Set them as .env.example says, in .env or in the template's environment."))
    else:
        defaults = {"DEFAULT_STEPS": settings.default_steps, "DEFAULT_GUIDANCE": settings.default_guidance}
        said = "".join(f", {name}={value:g}" for name, value in defaults.items() if value is not None)
        found("settings", ok(f"for {settings.supabase_url}, as {settings.target_worker}{said}"))
        found("key", check_key(settings))
        reachable = found("address", check_address(settings)).state is not State.FAIL
        for name, check in ONLINE.items():
            found(name, _tried(check, settings) if reachable else skip("Supabase was not reached."))
        for name, check in ON_THIS_MACHINE.items():
            found(name, _tried(check, settings))
    well = all(finding.state is not State.FAIL for finding in findings.values())
    if as_json:
        checks = [{"name": name, **finding.facts()} for name, finding in findings.items()]
        console.print(json.dumps({"ok": well, "checks": checks}, indent=2), markup=False)
    return 0 if well else 1


def _tried(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except Exception as error:  # noqa: BLE001  the other checks are to be made all the same
        return fail(
            f"This could not be examined ({type(error).__name__}: {error}).",
            "Mend what stands above; then run doctor again.",
        )

"""``fovea demo``: a line, its numbers, an answer through the three servers, a report."""

import base64
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli import preflight
from cli.errors import resume_command
from cli.run import JsonOption, ProfileOption, QuietOption, SetOption, choose_profile, complain_of
from model.data.errors import InputError

if TYPE_CHECKING:
    from cli.findings import Question
    from cli.line import Line
    from cli.progress import Mode
    from cli.summary import Answer
    from components.settings import Settings
    from pipelines.profile import Profile
    from serving.launch import Served

_NAME = "demo"
"""Of the deployment, among those on this machine."""
_ASK_SECONDS = 60.0


def demo(
    profile: ProfileOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
    machine: JsonOption = False,
) -> None:
    """Run the line, show what it learned, serve it, ask it a question, write a report. `make demo` calls this.

    The servers are stopped at the end unless the environment says `KEEP=1`.

    Examples: `fovea demo`, `KEEP=1 fovea demo --profile micro`
    """
    from cli.line import alone, settings_for
    from cli.progress import choose_mode
    from pipelines.train import configs_of

    started = time.monotonic()
    for check in preflight.preflight(Path.cwd(), installed=True):
        if check.problem:
            raise InputError(check.problem)
    chosen = choose_profile(profile, settings)
    configs_of(chosen)  # a line that cannot run is refused before anything is said or done
    surroundings = settings_for(resume_command())
    with alone(surroundings.out):
        _Demo(chosen, surroundings, choose_mode(quiet, machine), machine, started).run()


@dataclass
class _Demo:
    """One demo. ``machine`` prints nothing but one line of JSON at the end; ``started`` is its monotonic start."""

    profile: "Profile"
    settings: "Settings"
    mode: "Mode"
    machine: bool
    started: float

    def run(self) -> None:
        from cli.line import run_line
        from cli.tables import demo_table, one_line_total, stdout

        self._say(f"the line, profile {self.profile.name}")
        line = run_line(self.profile, self.settings, self.mode, Path.cwd())
        if line.run.failure is not None:
            complain_of(line.run.failure)
            raise typer.Exit(1)
        if not self.machine:
            stdout().print(demo_table(line.run.steps, line.lineage))
        self._say(one_line_total(len(line.run.steps), len(line.run.cached_steps), line.run.seconds))
        answer = self._serve(line)
        self._conclude(line, answer)

    def _say(self, text: str) -> None:
        if not self.machine:
            print(text, flush=True)

    def _serve(self, line: "Line") -> "Answer":
        """Start the three servers from what ``deploy`` rendered, ask, stop them unless KEEP=1."""
        from cli.findings import first_question
        from serving import launch

        directory, keep = self.settings.out / "serve", os.environ.get("KEEP") == "1"
        launch.stop(directory, _NAME)  # what an earlier KEEP=1 left
        self._say("\nstarting vision predictor, language predictor and gateway")
        deployment = line.output("deploy", "deployment")
        question = first_question(line)
        if keep:
            served = launch.start(deployment, directory, name=_NAME, detach=True)
            return self._ask(served, question)
        with launch.serving(deployment, directory, name=_NAME) as served:
            return self._ask(served, question)

    def _ask(self, served: "Served", question: "Question") -> "Answer":
        for process in served.processes:
            self._say(f"  {process.name:<9} process {process.pid}, port {process.port}")
        answer = ask(f"{served.endpoint}/v1", served.model, question)
        self._say(f"  question  {answer.question}")
        self._say(f"  answer    {answer.answer}")
        self._say(f"  truth     {answer.truth}")
        return answer

    def _conclude(self, line: "Line", answer: "Answer") -> None:
        """Write summary and report; print where everything is."""
        from cli.findings import report_of, stage_summaries
        from cli.report import write_report
        from cli.summary import DvcLock, RegistryEntry, Summary

        registered = line.lineage["register"]["values"]
        alias = "champion" if "champion" in registered["aliases"] else "challenger"
        summary = Summary(
            stages=stage_summaries(line),
            answer=answer,
            registry=RegistryEntry(name=registered["name"], version=registered["version"], alias=alias),
            dvc=DvcLock(lock_sha256=line.lock_sha256),
            wall_seconds=round(time.monotonic() - self.started, 3),
            cached_steps=line.run.cached_steps,
        )
        directory = self.settings.out / "demo"
        summary.write(directory / "summary.json")
        write_report(report_of(line, summary, self.profile.name), directory / "report.html")
        if self.machine:
            print(summary.model_dump_json())
            return
        entry, fovea = summary.registry, _as_typed("fovea")
        lock = line.lock_sha256 or f"not written: {line.why_no_lock}"
        self._say(f"\nregistry  {entry.name} version {entry.version} ({entry.alias})")
        self._say(f"dvc.lock  {lock}")
        self._say(f"summary   {_near(directory / 'summary.json')}")
        self._say(f"report    {_near(directory / 'report.html')}")
        if os.environ.get("KEEP") == "1":
            self._say(f'\nstill served at {answer.endpoint}; ask: {fovea} chat --name {_NAME} IMAGE "QUESTION"')
            self._say(f"stop it:  {fovea} stop {_NAME}")
        else:
            self._say(f"\nserve it: {fovea} serve {_near(self.settings.out / 'line' / 'deploy' / 'deployment')}")
        self._say(f"runs:     {_how_to_see_runs(self.settings.tracking_uri)}")


def _how_to_see_runs(uri: str) -> str:
    """The address of a tracking server, or the command that shows what lies in a file."""
    from components.tracking import redacted

    if uri.startswith(("http://", "https://")):
        return redacted(uri)
    return f"{_as_typed('mlflow')} ui --backend-store-uri {redacted(uri)}"


def ask(endpoint: str, model: str, question: "Question") -> "Answer":
    """Send one image and its question through an OpenAI-compatible endpoint.

    Raises:
        InputError: the endpoint refused or did not answer.
    """
    import httpx
    import openai

    from cli.summary import Answer

    url = f"data:image/png;base64,{base64.b64encode(question.image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
    # The gateway is on this machine: a proxy of the environment has nothing to do with it.
    http = httpx.Client(trust_env=False, timeout=_ASK_SECONDS)
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0, http_client=http) as client:
        try:
            reply = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": content}], max_tokens=32, temperature=0
            )
        except openai.OpenAIError as error:
            raise InputError(f"{endpoint}: {error}") from error
    text = (reply.choices[0].message.content or "").strip()
    return Answer(question=question.text, answer=text, truth=question.truth, endpoint=endpoint)


def _as_typed(command: str) -> str:
    """How a user types a command of this environment: by its path where it is not the first on PATH."""
    here = Path(sys.executable).parent / command
    return command if shutil.which(command) == str(here) else _near(here)


def _near(path: Path) -> str:
    """A path below the current directory without it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)

"""optuna-dashboard shows what a search has found: pip install optuna-dashboard.

A search of the tiny space is made in the folder, once; then the dashboard is asked over its own interface, as its page
does, and must tell of every trial the values and constraints that Optuna has on record.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from wsgiref.util import setup_testing_defaults

import optuna
from common import arguments, keep, reason
from optuna_dashboard import wsgi

SEARCH = ("--space", "efficientvit-tiny", "--trials", "8", "--pool", "4", "--budget", "2ms", "--front-size", "2")


def ask(page, path: str) -> bytes:
    place, _, query = path.partition("?")
    environment = {"PATH_INFO": place, "QUERY_STRING": query, "REQUEST_METHOD": "GET"}
    setup_testing_defaults(environment)
    status = []
    body = b"".join(page(environment, lambda line, headers, *rest: status.append(line)))
    if not status[0].startswith("200"):
        raise ValueError(f"{path}: {status[0]}")
    return body


def shown(storage: str) -> dict[str, object]:
    page = wsgi(storage)
    (study,) = json.loads(ask(page, "/api/studies"))["study_summaries"]
    trials = json.loads(ask(page, f"/api/studies/{study['study_id']}?after=0"))["trials"]
    record = optuna.load_study(study_name=study["study_name"], storage=storage).trials
    values = {trial.number: trial.values for trial in record}
    limits = {trial.number: trial.constraints for trial in record}
    for trial in trials:
        if trial.get("values") != values[trial["number"]]:
            raise ValueError(f"trial {trial['number']}: {trial.get('values')} for {values[trial['number']]}")
        named = [value for name, value in limits[trial["number"]].items() if not name.isdigit()]
        if trial["constraints"] != named:
            raise ValueError(f"trial {trial['number']}: {trial['constraints']} for {named}")
    if len(trials) != len(record):
        raise ValueError(f"{len(trials)} of {len(record)} trials")
    ask(page, f"/dashboard/studies/{study['study_id']}")
    return {"trials": len(trials)}


def main() -> None:
    folder = arguments().folder.resolve()
    run = folder / "run"
    if not run.exists():
        subprocess.run([sys.executable, "-m", "evit_nas", "search", *SEARCH, "--out", str(run)], check=True)
    try:
        answer = shown(f"sqlite:///{run / 'study.db'}")
    except Exception as error:  # whatever it is
        answer = {"failed": reason(error)}
    print(answer)
    how = "`optuna-dashboard sqlite:///RUN/study.db`"
    keep("optuna-dashboard", version("optuna-dashboard"), how, [{"network": "", "form": "study.db", **answer}])


if __name__ == "__main__":
    main()

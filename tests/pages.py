"""What an experiment writes: its jobs are run by the command line, and reported."""

from __future__ import annotations

from keras_kare.experiments import command, report


def page_of(name, jobs, work, folder, monkeypatch):
    """The page of an experiment whose jobs, and what does them, are these instead."""
    experiment = command.Experiment(lambda options: jobs, work)
    monkeypatch.setitem(command.EXPERIMENTS, name, experiment)
    command.main([name, "--out", str(folder), "--workers", "0"])
    return report.write(folder, None).read_text()

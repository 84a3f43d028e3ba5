"""A run's folder: kills and full disks at every moment at which a file changes, what resume refuses, locks."""

import pytest

import small_run
import train
from small_run import ARGUMENTS, contents, start_over, stopped_at


@pytest.fixture
def command(monkeypatch, tmp_path):
    """train.main in miniature: a first start, or going on where there is something to go on with."""
    small_run.install(monkeypatch)
    run = tmp_path / "run"

    def start(*more):
        if (run / "config.json").exists():
            return train.main(["--resume", str(run), *more])
        return train.main([*ARGUMENTS, "--out", str(run), *more])

    start.run = run
    return start


@pytest.mark.parametrize("fault", ["kill", "torn", "full"])
def test_a_run_that_stops_at_any_change_of_a_file_goes_on_to_the_same_files(command, fault):
    """However it stops, the run that goes on ends with the files of one that was left alone, and no others."""
    command()
    whole = contents(command.run)
    moment = 0
    while True:
        start_over(command.run)
        moment += 1
        said = stopped_at(command.run, moment, fault, command)
        if said is None:
            break
        if fault == "full":
            assert said == "went on" or said.startswith("train.py: "), said
        command()
        assert contents(command.run) == whole, (moment, said)
    assert moment > 40

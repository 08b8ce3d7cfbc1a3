"""Code in a Python of its own."""

from espnet_l0prune.core.python import last_line, run_python


def test_the_current_folder_is_read_and_not_run(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger ran')")
    code = "import json, os, sys; print(os.listdir(), *sys.argv[1:])"
    done = run_python(code, "a", "b c", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "['json.py'] a b c\n")


def test_its_environment_is_given_and_its_output_need_be_no_text():
    code = "import os, sys; sys.stdout.buffer.write(os.environ['X'].encode() + b'\\xff')"
    done = run_python(code, env={"X": "given"})
    assert done.stdout == "given\N{REPLACEMENT CHARACTER}"


def test_the_last_line_of_a_failure():
    assert last_line(run_python("raise ValueError('too late')")) == "ValueError: too late"
    assert last_line(run_python("")) == "no message"


def test_a_log_takes_all_that_it_writes(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        done = run_python("print('said'); raise ValueError('too late')", log=log)
    assert (done.returncode, done.stdout, done.stderr) == (1, None, None)
    lines = (tmp_path / "log").read_text().splitlines()
    assert "said" in lines
    assert "ValueError: too late" in lines

"""Every configuration of studies/dense.py can be trained, and its rows are compared."""

import json

import dense
import pytest
from conditions import CONDITIONS, step_of
from espnet2.tasks.asr import ASRTask
from settings import written

from tests.studies.test_compare import parsed


@pytest.mark.parametrize("name", dense.CONFIGURATIONS)
def test_a_configuration_is_one_of_espnets(name, tmp_path):
    args = parsed(written(tmp_path / "train.yaml", dense.conf_of(name, epochs=7)))
    model = ASRTask.build_model(args)
    assert args.max_epoch == 7
    assert model.ctc is not None
    assert ASRTask.build_preprocess_fn(args, train=True) is not None


def test_the_best_comes_first_beside_the_base(tmp_path, capsys):
    rows = []
    for name, errors in (("base", 3), ("bpe", 1)):
        found = {c: [errors] * (6 // step_of(c)) for c in CONDITIONS}
        sizes = {"words": [5] * 6, "letters": [20] * 6, "speakers": [*"AABBCC"]}
        key = {"name": name, "config": "0", "seed": 0, "epochs": 1}
        costs = {"parameters": 10**6, "training seconds": 60}
        errors = {"errors": found, "letter errors": found}
        rows.append({**key, **costs, **errors, **sizes})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dense.main(["--rows", str(file)])
    first, second = capsys.readouterr().out.strip().splitlines()[2:4]
    assert first.startswith("| bpe |")
    assert "[-40.00, -40.00]" in first
    assert "| 60.00 | [+0.00, +0.00]" in second

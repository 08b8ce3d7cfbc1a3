"""What was in the package once is known by its name."""

import pytest
import yaml
from espnet2.tasks.asr import ASRTask, encoder_choices

from espnet_l0prune.cli import main
from espnet_l0prune.testing.experiments import save_experiment


def test_an_experiment_of_the_study_is_refused_with_where_the_study_is(tmp_path, capsys):
    save_experiment(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["encoder"] = "low_rank_conformer"
    config["encoder_conf"]["ranks"] = {"encoders.0.feed_forward.w_1": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "low_rank_conformer" not in encoder_choices.classes
    with pytest.raises(ValueError, match="encoder: low_rank_conformer, of layers"):
        ASRTask.build_model_from_file(tmp_path / "config.yaml")  # as Speech2Text does
    assert main(["inspect", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "encoder: low_rank_conformer, of layers factored by SVD" in said
    assert "studies/ of this project's repository" in said

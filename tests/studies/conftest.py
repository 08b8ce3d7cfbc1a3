"""Studies leave ESPnet as they found it."""

import pytest
from espnet2.tasks.asr import encoder_choices


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    """The encoders that ESPnet knows are the same after a test as before it."""
    monkeypatch.setattr(encoder_choices, "classes", dict(encoder_choices.classes))

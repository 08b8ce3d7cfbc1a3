"""Train OWSM-CTC, a task of ESPnet's, which up to 202511 has no command for it."""

from espnet2.tasks.s2t_ctc import S2TTask


def main(cmd: list[str] | None = None) -> None:
    """Train with the options of ESPnet's s2t_train_ctc, or with those in `cmd`."""
    S2TTask.main(cmd=cmd)


if __name__ == "__main__":
    main()

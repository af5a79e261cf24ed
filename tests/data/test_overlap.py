"""Proves that a run says when it validates on documents that it is trained on, once and in one line."""

import pytest

from tokenization import END_OF_TEXT, Tokenizer


@pytest.fixture
def overlapping(token_data, tmp_path):
    """A validation file with 2 documents of training's, and one of its own."""
    train = (token_data / "train.txt").read_text().split(END_OF_TEXT)
    (tmp_path / "valid.txt").write_text(END_OF_TEXT.join([train[3], "Tom saw nobody in the garden. " * 9, train[0]]))
    Tokenizer.load(token_data / "tok").encode_files([tmp_path / "valid.txt"], tmp_path / "valid.bin", num_processes=1)
    return tmp_path / "valid.bin"


def test_fit_and_validate_warn_of_shared_documents(lm, fit_arguments, overlapping, tmp_path):
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, "--trainer.max_steps=1", f"--data.val_path={overlapping}"))
    assert result.code == 0
    line = (
        f"lm: {overlapping}: 2 of its 3 documents (66.67%) seem to be in the training data, too, which lowers the"
        " loss; `tokenization check TRAIN --valid VALID` finds them in the texts\n"
    )
    assert result.err == line
    again = lm("validate", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert (again.code, again.err) == (0, line)

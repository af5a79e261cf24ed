"""Proves that a run of several processes, which torchrun or SLURM have started, is one run or none: they take their
number from the launcher."""

import pytest
from jsonargparse import Namespace

from lm.training.hosts import find_world
from tokenization import InputError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "lm",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): sets these; None removes one."""

    def change(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize("variables", [TORCHRUN, TORCHRUN | {"GROUP_WORLD_SIZE": None}, SLURM])
def test_the_launcher_says_how_many_there_are(variables, environment):
    environment(variables)
    world = find_world()
    assert not getattr(world.environment, "auto_requeue", False)
    assert (world.rank, world.size, world.nodes, world.per_node) == (3, 4, 2, 2)
    assert (world.environment.global_rank(), world.environment.world_size()) == (3, 4)
    assert world.parts_of_trainer(Namespace(num_nodes=1, devices="auto")) == {"num_nodes": 2, "devices": 2}
    assert world.parts_of_trainer(Namespace(num_nodes=2, devices=[0, 1])) == {"num_nodes": 2}
    with pytest.raises(InputError, match=r"trainer.num_nodes is 3, and (torchrun|SLURM) has started 2; leave"):
        world.parts_of_trainer(Namespace(num_nodes=3, devices=1))


@pytest.mark.parametrize("variables", [{}, SLURM | {"SLURM_JOB_NAME": "interactive"}, {"LOCAL_RANK": "1"}])
def test_without_a_launcher_lightning_decides(variables, environment):
    environment(variables)
    assert find_world() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "3"}, "torchrun has started 3 processes on 2 nodes, 2 of them on this one; give"),
        (TORCHRUN | {"RANK": "first"}, "RANK is first; the launcher must set it to a number"),
        (TORCHRUN | {"WORLD_SIZE": None}, "WORLD_SIZE is None; the launcher"),
        (SLURM | {"SLURM_NTASKS": "3"}, "SLURM has started 3 processes on 2 nodes; set --ntasks-per-node"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": None}, "SLURM has started 4 processes on 2 nodes; set --ntasks-per-node"),
    ],
)
def test_numbers_that_do_not_agree_are_refused(variables, message, environment):
    environment(variables)
    with pytest.raises(InputError, match=message):
        find_world()


def test_devices_that_the_launcher_has_not_started_are_refused(lm, fit_arguments, environment, tmp_path):
    """Lightning would wait for the other process for half an hour."""
    environment(SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": None, "SLURM_PROCID": "0"})
    environment({"SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.devices=2"))
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "lm fit: trainer.devices is 2, and SLURM has started 1 a node; leave trainer.devices out, as it is read from"
        " the environment\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [(), ("--ckpt_path=auto",), ("--trainer.fast_dev_run=true",)])
def test_a_checkpoint_of_lightnings_for_slurm_is_never_taken(settings, lm, fit_arguments, tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"the middle of a step")
    result = lm(*fit_arguments(tmp_path, *settings))
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    if "auto" not in "".join(settings):
        assert line.startswith(f"lm fit: {tmp_path / 'hpc_ckpt_1.ckpt'}: was saved by Lightning for SLURM")

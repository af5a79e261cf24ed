"""Proves that a sharded checkpoint is the single file it was cut from, for any number of shards and readers; that it is
there with all of its shards or not there, whatever the moment of a kill; and that a shard which is missing, damaged or
somebody else's is refused by name."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import Calls, archive
from helpers.models import save_run
from helpers.runs import same
from helpers.shards import scatter

from lm.runs import shards
from lm.runs.checkpoint import check_checkpoint, load_checkpoint, load_model, open_state, save_checkpoint, verify
from lm.runs.folder import delete_leftovers
from lm.runs.manifest import read_manifest
from lm.runs.newest import find_newest, make_complete
from lm.runs.shards import delete_unused_shards, new_shards, rows_of, unused_shards, write_shard
from lm.runs.states import named_tensors
from tokenization import InputError


@pytest.fixture(scope="module")
def whole(token_data, tmp_path_factory) -> Path:
    """A run with a single file: a model of odd sizes, with moments."""
    run = tmp_path_factory.mktemp("whole") / "run"
    model = save_run(run, token_data, vocab_size=321, d_model=12, num_layers=1, num_heads=2)
    state = torch.load(run / "best.ckpt", weights_only=True)
    moments = {
        number: {"t": 3, "m": torch.randn_like(w), "v": w.detach().abs()} for number, w in enumerate(model.parameters())
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.95), "params": list(moments)}]
    save_checkpoint(state | {"optimizer_states": [{"state": moments, "param_groups": groups}]}, run / "best.ckpt")
    return run


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it, in which last.ckpt is sharded, of step 4, and best.ckpt a single file of step 3."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    scatter(run / "best.ckpt", 3, run, global_step=4)
    return run


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_it_is_the_single_file(count, whole, tmp_path):
    scatter(whole / "best.ckpt", count, tmp_path)
    expected, state = load_checkpoint(whole / "best.ckpt"), load_checkpoint(tmp_path / "last.ckpt")
    assert same(state, expected)
    assert list(state["state_dict"]) == list(expected["state_dict"])
    model, other = load_model(tmp_path / "last.ckpt"), load_model(whole / "best.ckpt")
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    assert check_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize(("written", "read"), [(1, 3), (3, 1), (2, 5), (5, 2), (4, 4), (40, 7)])
def test_any_number_of_processes_reads_it(written, read, whole, tmp_path, monkeypatch):
    scatter(whole / "best.ckpt", written, tmp_path)
    _, found = open_state(tmp_path / "last.ckpt")
    tensors = dict(named_tensors({"state_dict": load_checkpoint(whole / "best.ckpt")["state_dict"]}))
    files = []
    original = shards.read_archive
    monkeypatch.setattr(shards, "read_archive", lambda file: files.append(file.name) or original(file))
    for number in range(read):
        files.clear()
        rows = found.read(number, read, parts=("state_dict",))
        for name, tensor in tensors.items():
            parts = [*torch.chunk(tensor, read), *[tensor[:0]] * read]
            assert torch.equal(rows.get(name, tensor[:0]), parts[number]), name
        if written == read:  # a process reads its own shard alone
            assert [Path(file).name for file in files] == [f"{number}-of-{read}.pt"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rows_are_cut_as_torch_cuts_them(count):
    for rows in range(1, 25):
        parts = [rows_of(rows, number, count) for number in range(count)]
        chunks = [chunk.tolist() for chunk in torch.chunk(torch.arange(rows), count)]
        assert [list(part) for part in parts if part] == chunks
        assert not any(parts[len(chunks) :])


# --- what may have happened to it ------------------------------------------------------------------------------------


def spoil(shard: Path, how: str) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "missing": shard.unlink,
        "one bit": lambda: shard.write_bytes(content),
        "cut": lambda: shard.write_bytes(content[:-7]),
        "another's": lambda: shutil.copy(shard.with_name("0-of-3.pt"), shard),
        "no file": lambda: (shard.unlink(), shard.mkdir()),
    }[how]()


@pytest.mark.parametrize("how", ["missing", "one bit", "cut", "another's", "no file"])
def test_a_bad_shard_is_named_and_auto_takes_the_checkpoint_before(how, run):
    assert find_newest(run)[0] == run / "last.ckpt"
    shard = next(run.glob("shards/*/1-of-3.pt"))
    spoil(shard, how)
    reason = (
        "is missing, and .*last.ckpt needs it" if how in ("missing", "no file") else "is damaged and does not match"
    )
    for read in (verify, load_checkpoint, load_model):
        with pytest.raises(InputError, match=rf"^{shard}: {reason}.*; use an earlier checkpoint") as refusal:
            read(run / "last.ckpt")
        assert "\n" not in str(refusal.value)
    path, reasons = find_newest(run)
    assert path == run / "best.ckpt"
    assert str(shard) in reasons[0]


def test_numbers_that_are_not_finite_are_found_in_the_shards(run):
    state = load_checkpoint(run / "best.ckpt")
    state["optimizer_states"][0]["state"][2]["v"][-1] = torch.nan
    torch.save(state, run / "nan.pt")
    scatter(run / "nan.pt", 3, run, global_step=4)
    with pytest.raises(
        InputError, match=r"2-of-3.pt: is from a run that has diverged: optimizer_states.0.state.2.v is"
    ):
        verify(run / "last.ckpt")
    with pytest.raises(
        InputError, match=r"last.ckpt: is from a run that has diverged: optimizer_states.0.state.2.v is"
    ):
        load_checkpoint(run / "last.ckpt")


HOSTILE = {  # what a stranger's checkpoint may say of its shards
    "a file elsewhere": ({"shards": {"../secret": "0"}}, {}, "is not a checkpoint of `lm fit`"),
    "a path that leads out": ({"shards": {"shards/step-1-0/../../0-of-1.pt": "0"}}, {}, "is not a checkpoint of"),
    "digests that are no text": ({"shards": {"shards/step-1-00/0-of-1.pt": 7}}, {}, "is not a checkpoint of"),
    "no shards": ({}, {}, "does not describe its shards"),
    "sizes that no file holds": (None, {"state_dict.model.lm_head.weight": [1 << 50, 12]}, "does not describe"),
    "sizes that are none": (None, {"state_dict.model.lm_head.weight": ["many"]}, "does not describe"),
    "other tensors": (None, {"state_dict.model.another": [3]}, "does not hold the rows that"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_stranger_says_of_shards_is_bounded(case, run):
    said, shapes, message = HOSTILE[case]
    state, found = open_state(run / "last.ckpt")
    state["sharded"] |= shapes
    digests = found.digests if said is None else said.get("shards", {})
    save_checkpoint(state, run / "last.ckpt", digests)
    with pytest.raises(InputError, match=message):
        load_checkpoint(run / "last.ckpt")


def test_a_shard_runs_no_code(run, tmp_path):
    state, found = open_state(run / "last.ckpt")
    digests = dict(found.digests)
    (run / next(iter(digests))).write_bytes(archive({"x": Calls(os.mkdir, str(tmp_path / "evil"))}))
    digests[next(iter(digests))] = shards.hashlib.sha256((run / next(iter(digests))).read_bytes()).hexdigest()
    save_checkpoint(state, run / "last.ckpt", digests)
    with pytest.raises(InputError, match=r"0-of-3.pt: does not hold the rows that"):
        load_checkpoint(run / "last.ckpt")
    assert not (tmp_path / "evil").exists()


# --- a kill, and what it leaves --------------------------------------------------------------------------------------


def save(run: Path, step: int) -> None:
    """What the processes of a run do together to save a step, one after another."""
    from lm.training.sharding import commit

    weight = torch.full((5, 3), float(step))
    names = new_shards(step, 2)
    state = {"state_dict": {"model.w": torch.empty(0)}, "hyper_parameters": SETTINGS, "global_step": step}
    written = {
        name: write_shard(run / name, {"state_dict.model.w": rows})
        for name, rows in zip(names, torch.chunk(weight, 2), strict=True)
    }
    commit(state | {"sharded": {"state_dict.model.w": [5, 3]}}, run / "last.ckpt", written)


SETTINGS = {"vocab_size": 20, "context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": None}
SETTINGS |= {"rope_theta": 100.0, "norm_position": "pre", "position_encoding": "rope", "feed_forward": "swiglu"}


def killed_at(moment: int, run: Path, step: int) -> bool:
    """Saves a step in a process that ends at this operation on the disk; whether it got that far."""
    pid = os.fork()
    if not pid:
        left = [moment]

        def ends(operation):
            def count(*arguments, **settings):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)
                return operation(*arguments, **settings)

            return count

        for name in ("open", "mkdir", "fsync", "replace", "unlink", "rmdir"):
            setattr(os, name, ends(getattr(os, name)))
        try:
            save(run, step)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_the_last_whole_checkpoint(every, tmp_path):
    steps, moment, killed = [], 1, True
    while killed:
        run = tmp_path / str(moment)
        run.mkdir()
        save(run, 1)
        killed = killed_at(moment, run, 2)
        weight = load_checkpoint(run / "last.ckpt")["state_dict"]["model.w"]
        steps.append(read_manifest(run / "last.ckpt")["step"])
        assert torch.equal(weight, torch.full((5, 3), float(steps[-1])))
        leftovers = [*delete_leftovers(run), *delete_unused_shards(run)]
        assert killed or not leftovers
        files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
        assert files == sorted(["last.ckpt", *read_manifest(run / "last.ckpt")["shards"]])
        save(run, 3)
        moment += every
    assert moment > 20
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_checkpoints_share_shards_until_none_names_them(tmp_path):
    save(tmp_path, 1)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    save(tmp_path, 2)
    assert len(list(tmp_path.glob("shards/*"))) == 2
    make_complete(tmp_path / "best.ckpt")
    assert [path.name[:6] for path in unused_shards(tmp_path)] == ["step-2"]
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[:-9])  # whose shards are unknown
    assert delete_unused_shards(tmp_path) == []
    (tmp_path / "last.ckpt").write_bytes(content)
    delete_unused_shards(tmp_path)
    assert load_checkpoint(tmp_path / "best.ckpt")["state_dict"]["model.w"][0, 0] == 1


# --- lm consolidate --------------------------------------------------------------------------------------------------


def test_consolidating(run, lm, small, tmp_path):
    (run / "config.yaml").write_text("model: {}\n")
    result = lm("consolidate", run / "last.ckpt")
    beside = run / "last-consolidated.ckpt"
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{run / 'last.ckpt'} -> {beside}: step 4, {beside.stat().st_size:,} bytes from 3 shards\n"
    expected = load_checkpoint(run / "best.ckpt") | {"global_step": 4}
    assert same(load_checkpoint(beside), expected)
    assert lm("consolidate", run / "last.ckpt", "--output", tmp_path / "new/it.ckpt").code == 0
    shutil.rmtree(run / "shards")
    assert same(load_checkpoint(tmp_path / "new/it.ckpt"), expected)
    assert verify(tmp_path / "new/it.ckpt")["step"] == 4
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.yaml", "it.ckpt", "tokenizer"]
    words = ("--prompt", "Tom", "--max-new-tokens", 3, "--device", "cpu")
    told, expected = (lm("generate", path, *words) for path in (tmp_path / "new/it.ckpt", run / "best.ckpt"))
    assert (told.code, told.out) == (0, expected.out)


def test_what_cannot_be_consolidated(run, lm, small, tmp_path):
    (tmp_path / "there").write_text("mine")
    small.save(tmp_path / "other/tokenizer")
    (run / "config.yaml").write_text("model: {}\n")
    for name in ("config", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "config/config.yaml").write_text("model: {d_model: 8}\n")
    (tmp_path / "link/config.yaml").symlink_to("nowhere")
    for arguments, message in (
        ((run / "best.ckpt",), "best.ckpt: is a single file already; copy it"),
        ((run,), "best.ckpt: is a single file already"),
        ((tmp_path / "nowhere",), "nowhere: no such checkpoint"),
        ((run / "last.ckpt", "--output", tmp_path / "there"), "there: exists already"),
        ((run / "last.ckpt", "--output", run / "last.ckpt"), "last.ckpt: exists already"),
        ((run / "last.ckpt", "--output", tmp_path / "other/it.ckpt"), "tokenizer: is not the run's tokenizer"),
        ((run / "last.ckpt", "--output", tmp_path / "config/it.ckpt"), "config.yaml: is not the run's configuration"),
        ((run / "last.ckpt", "--output", tmp_path / "link/it.ckpt"), "config.yaml: is not the run's configuration"),
        ((run / "last.ckpt", "--output", run / "events.x"), "events.x: would be taken for the run's own events.x"),
        ((run / "last.ckpt", "--output", run / "tokenizer/it.ckpt"), "would be taken for the run's own tokenizer"),
    ):
        result = lm("consolidate", *arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert len(result.err.splitlines()) == 1
    spoil(next(run.glob("shards/*/1-of-3.pt")), "one bit")
    result = lm("consolidate", run / "last.ckpt")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "1-of-3.pt: is damaged" in result.err
    assert (tmp_path / "there").read_text() == "mine"
    assert not list(run.glob("*consolidated*"))
    assert [path.name for name in ("config", "link") for path in (tmp_path / name).iterdir()] == 2 * ["config.yaml"]


def test_verify_counts_the_shards(run, lm):
    result = lm("verify", run / "last.ckpt")
    sizes = sum(path.stat().st_size for path in (run / "last.ckpt", *run.glob("shards/*/*")))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{run / 'last.ckpt'}: intact, step 4, {sizes:,} bytes in 3 shards\n")
    assert result.out.endswith("config.yaml was not there when it was saved\n")


# --- the commands ----------------------------------------------------------------------------------------------------


def test_lm_test_scores_shards_as_the_single_file(lm, run, token_data):
    results = [lm("test", run / name, token_data / "valid.bin") for name in ("best.ckpt", "last.ckpt")]
    assert [result.code for result in results] == [0, 0]
    assert results[0].out == results[1].out


def test_lm_serve_takes_shards_and_refuses_a_damaged_one(lm, run, monkeypatch):
    async def serve_nobody(server, host, port, ready) -> None:
        ready("http://here", asyncio.Event())

    monkeypatch.setattr("lm.commands.serve.run_server", serve_nobody)
    result = lm("serve", run / "last.ckpt")
    assert (result.code, result.err) == (0, f"{run / 'last.ckpt'} is served at http://here; Ctrl-C stops it\n")
    (shard,) = run.glob("shards/*/1-of-3.pt")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    for command in (["serve", run / "last.ckpt"], ["test", run / "last.ckpt", "nowhere.bin"]):
        result = lm(*command)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"{shard}: is damaged and does not match its digest" in result.err

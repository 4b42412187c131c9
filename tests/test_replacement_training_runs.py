"""Whole runs: what is trained is faithful; killed, resumed and shared runs end as they should."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import hosts
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_worker import RUN, advanced, documents

import replacement
from circuits import cli
from replacement import formats
from replacement.training import Settings, train
from replacement.training.parallel import Ranks
from replacement.training.trainer import restored, start

ROOT = Path(__file__).resolve().parents[1]


def unexplained(host, dictionary) -> float:
    """Share of the variance of unseen MLP outputs that a dictionary leaves, over all layers."""
    model = replacement.ReplacementModel(host, dictionary)
    random = torch.Generator().manual_seed(99)
    errors, wanted = [], []
    for _ in range(40):
        run = model.run(torch.randint(3, hosts.VOCABULARY, (12,), generator=random).tolist())
        errors.append(model.read(run).errors)
        wanted.append(torch.stack([run.layer(m)["hook_mlp_out"] for m in range(host.n_layers)]))
    error, output = torch.cat(errors, dim=1), torch.cat(wanted, dim=1)
    variance = (output - output.mean(1, keepdim=True)).square().sum((1, 2))
    return float((error.square().sum((1, 2)) / variance).mean())


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("per-layer", "topk"),
        ("per-layer", "batchtopk"),
        ("per-layer", "relu"),
        ("skip", "topk"),
        ("skip", "jumprelu"),
        ("cross-layer", "topk"),
        ("cross-layer", "jumprelu"),
    ],
)
def test_every_kind_explains_a_host_it_has_not_seen(kind, activation):
    """The saved form, on raw activations of new prompts; predicting the mean would leave 1."""
    host = hosts.host("llama")
    chosen = Settings(
        kind=kind, activation=activation, features=96, k=12, steps=150, batch=128, length=12,
        learning_rate=0.01, buffer_bytes=2**21, prompts=128,
    )  # fmt: skip
    assert unexplained(host, train(host, documents() * 3, chosen)) < 0.3


def test_the_same_seed_is_the_same_dictionary_and_another_is_not():
    host = hosts.host("llama")
    chosen = Settings(features=24, k=3, steps=5, batch=64, length=12, buffer_bytes=60_000)
    runs = [train(host, documents(), replace(chosen, seed=seed)) for seed in (0, 0, 1)]
    readers = [run.layers[1].reader for run in runs]
    assert torch.equal(readers[0], readers[1])
    assert not torch.equal(readers[0], readers[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(hosts.host("llama"), documents(), RUN, out)
    return out


def worker(*arguments: object) -> list[str]:
    return [str(ROOT / "tests" / "training_worker.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    out = tmp_path / "run"
    killed = subprocess.Popen(
        [sys.executable, *worker("slowly", out)], env=environment(), stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 120
        while not any((out / "checkpoints").glob("0*")) or newest(out) < 40:
            assert killed.poll() is None and time.monotonic() < deadline, killed.stderr
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert 40 <= newest(out) < RUN.total
    assert not (out / "dictionary").exists()
    resumed = []
    train(hosts.host("llama"), documents(), RUN, out, resumed.append, resume=True)
    assert 40 <= resumed[0].step < RUN.total
    for name in ("dictionary/dictionary.safetensors", "training.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (
        load_file(p / f"checkpoints/{RUN.total:09d}/state.safetensors") for p in (out, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})


def newest(out: Path) -> int:
    return max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())


def test_the_log_has_one_object_a_logged_step(whole):
    lines = [json.loads(line) for line in (whole / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(0, RUN.total, 3), RUN.total - 1]
    assert set(lines[0]) == {"step", "loss", "fvu", "l0", "dead", "learning_rate"}
    assert lines[-1]["fvu"] < lines[0]["fvu"] / 2


def test_a_run_leaves_a_log_a_checkpoint_and_a_dictionary(whole):
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoints",
        "dictionary",
        "training.jsonl",
    ]
    assert [p.name for p in (whole / "checkpoints").iterdir()] == [f"{RUN.total:09d}"]
    loaded = formats.load(whole / "dictionary")
    assert unexplained(hosts.host("llama"), loaded) < 0.5
    about = json.loads((whole / "dictionary" / "dictionary.json").read_text())
    assert about["host"] == hosts.host("llama").name


def test_a_finished_run_resumes_to_itself(whole):
    before = (whole / "dictionary" / "dictionary.safetensors").read_bytes()
    seen = []
    train(hosts.host("llama"), documents(), RUN, whole, seen.append, resume=True)
    assert not seen
    assert (whole / "dictionary" / "dictionary.safetensors").read_bytes() == before


def test_a_half_written_checkpoint_is_not_taken(whole, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints" / "writing-000000020").mkdir(parents=True)
    chosen = replace(RUN, steps=4)
    seen = []
    train(hosts.host("llama"), documents(), chosen, out, seen.append, resume=True)
    assert [metrics.step for metrics in seen] == [0, 1, 2, 3]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000004"]


def test_a_run_is_not_overwritten_and_not_mixed_with_another(whole):
    host = hosts.host("llama")
    with pytest.raises(ValueError, match=r"already holds a run .*--resume"):
        train(host, documents(), RUN, whole)
    with pytest.raises(ValueError, match=r"features was 48 .* and is 24 now"):
        train(host, documents(), replace(RUN, features=24), whole, resume=True)
    with pytest.raises(ValueError, match=r"host was 'LlamaForCausalLM'"):
        train(hosts.host("qwen2"), documents(), RUN, whole, resume=True)
    with pytest.raises(ValueError, match=r"corpus was '300 documents' .* is '299 documents' now"):
        train(host, documents()[1:], RUN, whole, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    host, chosen = hosts.host("llama"), replace(RUN, steps=2)
    train(host, documents(), chosen, tmp_path / "run")
    state = tmp_path / "run/checkpoints/000000002/state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        train(host, documents(), chosen, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    chosen = replace(RUN, steps=100, learning_rate=1e30, checkpoint_every=1, warmup=0.0)
    with pytest.raises(ValueError, match=r"at step \d+, where the learning rate was 1e\+30; try"):
        train(hosts.host("llama"), documents(), chosen, tmp_path / "run")
    state = load_file(
        tmp_path / f"run/checkpoints/{newest(tmp_path / 'run'):09d}/state.safetensors"
    )
    assert state
    assert not (tmp_path / "run" / "dictionary").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"buffer_bytes": 10_000}, r"buffer_bytes=10000 holds 12 positions .* give \d+"),
        ({"buffer_on_disk": True}, "needs out="),
        ({"read": "hook_nix"}, "no activation 'hook_nix'"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        train(hosts.host("llama"), documents(), replace(RUN, **changes))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        train(hosts.host("llama"), documents(), RUN, tmp_path / "run")


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Real torchrun: gradients averaged, counts and estimates shared; then a run of both."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 320, 16, generator=generator)
    y = torch.tanh(x @ torch.randn(2, 16, 16, generator=generator)) + 1.0
    save_file({"x": x, "y": y}, tmp_path / "given.safetensors")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *worker("together", tmp_path)],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("begun", "rank"):
        ours, theirs = (load_file(tmp_path / f"{stage}-{r}.safetensors") for r in range(2))
        assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    chosen = Settings(features=24, k=3, steps=10, batch=32, dead_after=2)
    begun = load_file(tmp_path / "begun-0.safetensors")
    for name, tensor in vars(start(chosen, x, y).normal).items():
        assert torch.allclose(begun[f"normal.{name}"], tensor, rtol=1e-5, atol=1e-6)
    copy = {name: tensor.clone() for name, tensor in begun.items()}
    alone = advanced(restored(chosen, copy, 0, Ranks()), x, y, (0, 1)).state()
    assert torch.equal(alone["quiet"], ours["quiet"])
    assert not torch.equal(alone["layers.0.reader"], begun["layers.0.reader"])
    for name in alone:
        assert torch.allclose(alone[name], ours[name], rtol=1e-3, atol=1e-5), name
    run = tmp_path / "run"
    assert sorted(p.name for p in run.glob("checkpoints/*/*")) == [
        "checkpoint.json", "rank-0.json", "rank-1.json", "state.safetensors",
    ]  # fmt: skip
    assert unexplained(hosts.host("llama"), formats.load(run / "dictionary")) < 0.5


def test_a_batch_must_be_shared_evenly():
    with pytest.raises(ValueError, match="batch=64 cannot be shared evenly by 3 processes; 66 can"):
        Ranks(0, 3).share(64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hosts.save(tmp_path_factory.mktemp("host") / "tiny")


def command(monkeypatch, capsys, *arguments):
    """Status, stdout and stderr of `circuits train`, in this process."""
    monkeypatch.setattr(sys, "argv", ["circuits", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err


SHORT = ("--features", 16, "--k", 2, "--batch", 16, "--length", 8, "--device", "cpu")


def test_the_command_trains_on_the_host_alone(monkeypatch, capsys, folder, tmp_path):
    out = tmp_path / "run"
    arguments = (folder, "--self-generated", "--steps", 6, *SHORT, "--out", out)
    status, printed, error = command(monkeypatch, capsys, *arguments, "--kind", "cross-layer")
    assert status == 0, error
    assert "cross-layer topk, 16 features a layer, 6 steps of 16 positions" in printed
    assert "FVU" in printed and str(out / "dictionary") in printed.replace("\n", "")
    assert len(formats.load(out / "dictionary").layers) == 3
    status, _, error = command(monkeypatch, capsys, *arguments, "--kind", "cross-layer")
    assert status == 2 and "already holds a run" in error
    again = command(monkeypatch, capsys, *arguments, "--kind", "cross-layer", "--resume", "--json")
    assert again[0] == 0 and json.loads(again[1])["last"] is None


def test_the_command_trains_on_a_file(monkeypatch, capsys, folder, tmp_path):
    (tmp_path / "corpus.txt").write_text(f"{hosts.TEXT}\n" * 3)
    arguments = (folder, tmp_path / "corpus.txt", "--tokens", 64, *SHORT, "--out", tmp_path / "run")
    rest = ("--json", "--even", "--buffer", 1, "--buffer-on-disk")
    status, printed, error = command(monkeypatch, capsys, *arguments, *rest)
    assert status == 0, error
    summary = json.loads(printed)
    assert summary["steps"] == 4 and summary["last"]["step"] == 3


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, folder, tmp_path):
    import circuits.training

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(circuits.training, "train", interrupted)
    arguments = (folder, "--self-generated", "--steps", 6, *SHORT, "--out", tmp_path / "run")
    status, _, error = command(monkeypatch, capsys, *arguments)
    assert status == 130 and "--resume goes on" in error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_host_of_another_precision_trains_a_dictionary_in_float32(dtype):
    host = replacement.Host.open(hosts.build("llama", dtype))
    chosen = Settings(features=24, k=3, steps=5, batch=64, length=12, buffer_bytes=200_000)
    dictionary = train(host, documents(), chosen)
    assert dictionary.layers[0].reader.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 5), "give a CORPUS or --self-generated"),
        (("a.txt", "--self-generated", "--steps", 5), "and not both"),
        (("nix.txt", "--steps", 5), "there is no corpus file nix.txt"),
        (("--self-generated",), "give exactly one of the two"),
        (("--self-generated", "--steps", 5, "--kind", "cross"), "kind='cross' is not known"),
        (("--self-generated", "--steps", 5, "--device", "tpu"), "--device=tpu is none of"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, folder, tmp_path, arguments, words):
    out = tmp_path / "run"
    rest = () if "--device" in arguments else ("--device", "cpu")
    status, printed, error = command(monkeypatch, capsys, folder, *arguments, *rest, "--out", out)
    assert status == 2
    assert words in error and "Traceback" not in error
    assert not printed and not out.exists()

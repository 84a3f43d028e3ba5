import os
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no folder fails at once, not after retries

import pytest
import torch

torch.set_num_threads(1)  # the tests' models are tiny: threads would only wait for each other


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small Qwen2.5-VL checkpoint folder whose answers can mostly be read."""
    import tiny
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    import tiny
    return tiny.save_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session", autouse=True)
def readme_run(request, tmp_path_factory):
    """The README's main command, `python train.py`, as a process and its folder. It is begun before the first
    test, if its own test is among those asked for: it takes minutes, and has them beside the other tests."""
    if all(item.name != "test_python_train_py" for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("readme")
    root = Path(__file__).resolve().parents[1]
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, "train.py", "--out", str(folder / "run")], cwd=root,
                                   stdout=stdout, stderr=stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
    yield process, folder
    process.kill()
    process.wait()


@pytest.fixture
def policy():
    """Random weights in memory, adapters with B != 0, so that they matter."""
    import lora
    import policy as policies
    import tiny
    made = policies.from_parts(tiny.model(tiny.tokenizer()), tiny.processor())
    lora.add_lora(made.model, rank=4, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.lora_layers(made.model).values():
        layer.lora_B.data.normal_(0, 0.05, generator=generator)
    return made


@pytest.fixture
def tree_judge(tmp_path):
    """A taxonomy for the miniature CUB: some of the small checkpoint's answers are right, some generic, some
    wrong."""
    import trees
    return trees.judge_of_cub(tmp_path)


@pytest.fixture(scope="session")
def tok():
    """A small chat tokenizer, for the judge's tests."""
    import words
    return words.chat_tokenizer()


@pytest.fixture(params=[("llama", "sdpa"), ("qwen2", "sdpa"), ("llama", "eager")], ids="-".join)
def model(request, tok):
    """A small random chat model of each kind."""
    import words
    kind, attention = request.param
    return words.chat_model(kind, tok, attention)

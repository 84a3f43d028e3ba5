"""The reward in TRL's own GRPOTrainer, and the whole script on a small Qwen2.5-VL."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import peft
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

import lora
import tiny
import trees
from examples import trl_grpo
from examples.trl_reward import speciarl_reward
from judge import judge_groups, open_judge, parse_answer
from reward import Category, speciarl_rewards

N = 4


def content(completion) -> str:
    return completion[0]["content"]


def test_the_script_trains_by_its_groups_own_rewards(checkpoint, tree_judge, tmp_path):
    trees.cub(tmp_path)
    trainer = trl_grpo.main([
        "--root", str(tmp_path), "--model", str(checkpoint), "--judge", str(tree_judge), "--n", str(N),
        "--images-per-step", "4", "--minibatch", "2", "--steps", "2", "--limit", "4",
        "--max-new-tokens", "16", "--out", str(tmp_path / "out")])
    assert trainer.processing_class.tokenizer.padding_side == "left"

    # Two updates of two images, from one batch of four images: the rewards are those of the groups.
    rewards = list(trainer._logs["rewards"]["speciarl"])
    answers = [parse_answer(content(completion)) for completion in trainer._logs["completion"]]
    assert len(rewards) == len(answers) == 4 * N
    prompts = list(trainer._logs["prompt"])
    judge = open_judge(str(tree_judge))
    truth_of = {example.image().tobytes(): example.label
                for example in trl_grpo.data.load("cub", "train", str(tmp_path))}
    for start in range(0, len(rewards), N):
        group = answers[start:start + N]
        image = prompts[start][0]["content"][0]["image"]
        [categories] = judge_groups(judge, [truth_of[image.tobytes()]], [group])
        assert rewards[start:start + N] == speciarl_rewards(categories)
    assert len(set(rewards)) > 1

    # The adapter has moved, and opens in PEFT and in lora.py.
    assert any(p.abs().max() > 0 for name, p in trainer.model.named_parameters() if "lora_B" in name)
    loaded = peft.PeftModel.from_pretrained(tiny.model(tiny.tokenizer()), tmp_path / "out")
    in_peft = {name.replace(".default", ""): p for name, p in loaded.named_parameters() if "lora_" in name}
    own = tiny.model(tiny.tokenizer())
    lora.load_adapter(own, tmp_path / "out")
    for name, p in lora.lora_state(own).items():
        assert torch.equal(p, in_peft[name])
    assert len(in_peft) == len(lora.lora_state(own))


class Failing:
    """A judge without a verdict on the first of the images that it is asked about."""

    def __call__(self, pairs):
        first = pairs[0][0]
        return [None if truth == first else Category(i % 6) for i, (truth, _) in enumerate(pairs)]


@pytest.fixture
def answering_trainer(checkpoint, tmp_path):
    """Makes a trainer on three pictures that answers as it is told; all the rest is TRL's own."""
    def make(judge, texts: list[str]) -> GRPOTrainer:
        policy = trl_grpo.policies.load(str(checkpoint))
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
        rows = [{"prompt": prompt, "image": image, "label": f"bird {i}"}
                for i, image in enumerate(tiny.pictures(*[(56, 56)] * 3))]
        trainer = GRPOTrainer(
            model=policy.model, processing_class=policy.processor, train_dataset=rows_of(rows),
            reward_funcs=speciarl_reward(judge, N),
            args=GRPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=3 * N, num_generations=N,
                            max_completion_length=8, use_cpu=True, bf16=False, report_to="none"),
            peft_config=peft.LoraConfig(r=2, target_modules=trl_grpo.TARGETS))
        ids = [policy.tokenizer(text)["input_ids"] for text in texts]
        trainer._generate_single_turn = lambda prompt_ids, *args, **kwargs: (ids, None)
        trainer.model.train()
        inputs = []
        for row in rows:
            inputs += [row] * N
        return trainer, inputs
    return make


def rows_of(rows: list[dict]):
    from datasets import Dataset
    return Dataset.from_dict({"place": range(len(rows))}).with_transform(
        lambda batch: {key: [rows[place][key] for place in batch["place"]] for key in rows[0]})


def test_a_group_without_a_verdict_teaches_nothing_and_moves_no_figure(answering_trainer):
    texts = ["<answer> red finch </answer>"] * (3 * N)
    texts[2 * N] = "no tags"
    trainer, inputs = answering_trainer(Failing(), texts)
    made = trainer._generate_and_score_completions(inputs)

    # The first group has no verdict; the judge puts the others' answers on a rung each, by their place.
    advantages = made["advantages"].view(3, N)                                            # (B, N)
    assert advantages[0].tolist() == [0.0] * N
    assert advantages[1:].abs().sum() > 0
    rewards = torch.tensor(trainer._logs["rewards"]["speciarl"]).view(3, N)
    assert rewards[0].isnan().all() and not rewards[1:].isnan().any()
    assert rewards[2, 0] == -1.0
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(float(rewards[1:].mean()))

"""The same weights, completions and rewards through TRL's own loss and through ours: log-probs, advantages,
loss and LoRA gradients.

Where the two define something differently, TRL is told ours or we TRL's, and nothing else: TRL's whole
vocabulary (nothing banned), its 1e-4 beside the std, and `use_bias_correction_kl=False`.
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import peft
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import grpo
import lora
import policy as policies
import tiny
from examples.trl_grpo import TARGETS

B = 2
N = 4
RANK = 4
ALPHA = 8
LONGEST = 12
SIZES = ((56, 84), (112, 56))
QUESTION = "what is it?"
REWARDS = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
TOLERANCE = 1e-5

# By our own name or TRL's: TRL's settings, beside what grpo.py calls the same.
LOSSES = {
    "grpo": (dict(loss_type="grpo", epsilon=0.2, delta=3.0, scale_rewards="group"),
             dict(mode="seq-mean-token-mean", clip_high=0.2, dual_clip=3.0, scale="std")),
    "bnpo": (dict(loss_type="bnpo", epsilon=0.2, delta=3.0, scale_rewards="group"),
             dict(mode="token-mean", clip_high=0.2, dual_clip=3.0, scale="std")),
    "dapo": (dict(loss_type="dapo", epsilon=0.2, epsilon_high=0.28, delta=10.0, scale_rewards="group"),
             dict(mode="token-mean", clip_high=0.28, dual_clip=10.0, scale="std")),
    "dr_grpo": (dict(loss_type="dr_grpo", epsilon=0.2, delta=3.0, scale_rewards="none"),
                dict(mode="seq-mean-token-sum-norm", clip_high=0.2, dual_clip=3.0, scale="none")),
    "gspo": (dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4,
                  scale_rewards="group"),
             dict(mode="seq-mean-token-mean", clip_low=3e-4, clip_high=4e-4, dual_clip=None, scale="std",
                  whole_sequence=True)),
}


def build() -> policies.Policy:
    return policies.from_parts(tiny.model(tiny.tokenizer()), tiny.processor())


class Ours:
    """Our policy, its adapters with B != 0, and N completions of each picture, of unequal length."""

    def __init__(self):
        self.policy = build()
        lora.add_lora(self.policy.model, RANK, ALPHA, seed=0)
        generator = torch.Generator().manual_seed(1)
        for layer in lora.lora_layers(self.policy.model).values():
            layer.lora_B.data.normal_(0, 0.05, generator=generator)

        # Ordinary tokens, an EOS behind them, but for a row that is as long as a row may be.
        ordinary = (~self.policy.banned).nonzero().flatten()
        ordinary = ordinary[ordinary != self.policy.eos_ids[0]]
        self.lengths = [3, 7, LONGEST, 5, 9, 2, 6, 4]
        self.completions = torch.full((B * N, LONGEST), self.policy.pad_id)
        for row, length in enumerate(self.lengths):
            drawn = torch.randint(len(ordinary), (length,), generator=generator)
            self.completions[row, :length] = ordinary[drawn]
            if length < LONGEST:
                self.completions[row, length - 1] = self.policy.eos_ids[0]
        self.mask = torch.arange(LONGEST) < torch.tensor(self.lengths)[:, None]
        self.old_noise = 0.8 * torch.randn(B * N, LONGEST, generator=generator)

        self.images = tiny.pictures(*SIZES)
        self.policy.banned[:] = False  # TRL scores over the whole vocabulary
        self.prompts = policies.encode(self.policy, self.images, QUESTION)

    def logprobs(self) -> torch.Tensor:
        return policies.completion_logprobs(self.policy, self.prompts, self.completions, self.mask)

    @torch.no_grad()
    def ref_logprobs(self) -> torch.Tensor:
        with lora.adapters_off(self.policy.model):
            return self.logprobs()

    def loss(self, beta: float, moved: bool, mode: str, clip_high: float, dual_clip: float | None, scale: str,
             clip_low: float = 0.2, whole_sequence: bool = False):
        """(loss, statistics), as train.update makes it."""
        advantages = grpo.group_advantages(REWARDS, scale, eps=1e-4).flatten()
        logprobs = self.logprobs()
        old_logprobs = logprobs.detach()
        if moved:
            old_logprobs = old_logprobs + self.old_noise
        losses, figures = grpo.policy_loss(logprobs, old_logprobs, advantages, self.mask, clip_low, clip_high,
                                           dual_clip, whole_sequence)
        denominator = grpo.loss_denominator(self.mask.sum(1), mode, LONGEST)
        loss = grpo.aggregate(losses, self.mask, mode, denominator)
        if beta > 0:
            kl = grpo.k3_kl(logprobs, self.ref_logprobs())
            loss = loss + beta * grpo.aggregate(kl, self.mask, mode, denominator)
        return loss, figures

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """By PEFT's names."""
        state = lora.lora_state(self.policy.model)
        return dict(zip(state, torch.autograd.grad(loss, list(state.values()))))


@pytest.fixture(scope="module")
def ours():
    return Ours()


def trl_trainer(ours: Ours, folder, beta: float, **settings) -> GRPOTrainer:
    """TRL's trainer on the same base, its adapter set to ours, which answers with our completions."""
    policy = build()
    policy.tokenizer.padding_side = "left"  # as trl_grpo.py: the prompts have two lengths
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    rows = Dataset.from_list([{"prompt": prompt} for _ in range(B)])
    settings = dict(use_bias_correction_kl=False) | settings
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=B * N, gradient_accumulation_steps=1,
        num_generations=N, max_completion_length=LONGEST, beta=beta, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to="none", **settings)
    trainer = GRPOTrainer(
        model=policy.model, processing_class=policy.processor, args=args, train_dataset=rows,
        reward_funcs=lambda completions, **columns: REWARDS.flatten().tolist(),
        peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    state = {key: value.detach().clone() for key, value in lora.lora_state(ours.policy.model).items()}
    result = peft.set_peft_model_state_dict(trainer.model, state)
    assert not result.unexpected_keys

    ids = [row[:length].tolist() for row, length in zip(ours.completions, ours.lengths)]
    trainer._generate_single_turn = lambda *args, **kwargs: (ids, None)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop would set it
    trainer.inputs = []
    for image in ours.images:
        trainer.inputs += [{"prompt": prompt, "image": image}] * N
    return trainer


def trl_loss(trainer: GRPOTrainer, ours: Ours, moved: bool):
    """(loss, gradients by PEFT's names, the batch that TRL made)."""
    batch = trainer._generate_and_score_completions(trainer.inputs)
    if moved:
        batch["old_per_token_logps"] = ours.logprobs().detach() + ours.old_noise
    loss = trainer._compute_loss(trainer.model, batch)
    parameters = {name.replace(".default.", "."): p for name, p in trainer.model.named_parameters()
                  if p.requires_grad}
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))
    return loss.detach(), gradients, batch


def largest_difference(gradients: dict, others: dict) -> float:
    assert gradients.keys() == others.keys()
    return max(float((gradients[name] - others[name]).abs().max()) for name in gradients)


@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_trls(ours, tmp_path, name, beta):
    trl_settings, our_settings = LOSSES[name]
    trainer = trl_trainer(ours, tmp_path, beta, **trl_settings)
    for moved in (False, True):
        expected, expected_gradients, batch = trl_loss(trainer, ours, moved)
        loss, figures = ours.loss(beta, moved, **our_settings)
        gradients = ours.gradients(loss)

        # The same completions and advantages went in, and the reference is the same.
        assert torch.equal(batch["completion_mask"].bool(), ours.mask)
        assert torch.equal(batch["completion_ids"][ours.mask], ours.completions[ours.mask])
        advantages = grpo.group_advantages(REWARDS, our_settings["scale"], eps=1e-4).flatten()
        assert torch.allclose(batch["advantages"], advantages, rtol=0, atol=TOLERANCE)
        if beta > 0:
            gap = (batch["ref_per_token_logps"] - ours.ref_logprobs())[ours.mask]
            assert gap.abs().max() < TOLERANCE

        # Log-probs that differ meet both clips, so that these are compared too.
        if moved:
            assert figures["clipfrac"] > 0.2
            assert our_settings["dual_clip"] is None or figures["dual_clipfrac"] > 0

        assert abs(float(loss.detach() - expected)) < TOLERANCE
        assert largest_difference(gradients, expected_gradients) < TOLERANCE
        assert max(float(g.abs().max()) for g in gradients.values()) > 100 * TOLERANCE


def test_trls_grpo_is_no_token_mean(ours, tmp_path):
    """Its loss_type "grpo" is a mean over each answer first; train.py's --loss grpo is TRL's bnpo or dapo."""
    trainer = trl_trainer(ours, tmp_path, 0.0, **LOSSES["grpo"][0])
    _, expected, _ = trl_loss(trainer, ours, moved=True)
    loss, _ = ours.loss(0.0, True, **LOSSES["bnpo"][1])
    assert largest_difference(ours.gradients(loss), expected) > 100 * TOLERANCE


def test_trls_default_kl_has_another_gradient(ours, tmp_path):
    """use_bias_correction_kl multiplies k3 by the ratio: the same value before the first update, and the
    gradient of another estimate."""
    settings = LOSSES["bnpo"][0] | dict(use_bias_correction_kl=True)
    trainer = trl_trainer(ours, tmp_path, 1.0, **settings)
    expected, expected_gradients, _ = trl_loss(trainer, ours, moved=False)
    loss, _ = ours.loss(1.0, False, **LOSSES["bnpo"][1])
    assert abs(float(loss.detach() - expected)) < TOLERANCE
    gradients = ours.gradients(loss)
    assert largest_difference(gradients, expected_gradients) > 100 * TOLERANCE

    # The rest of TRL's gradient: that of the ratio, which is 1, times the KL.
    logprobs = ours.logprobs()
    kl = grpo.k3_kl(logprobs, ours.ref_logprobs()).detach()
    ratio = (logprobs - logprobs.detach()).exp()
    rest = ours.gradients(grpo.aggregate(ratio * kl, ours.mask, "token-mean"))
    corrected = {name: gradients[name] + rest[name] for name in gradients}
    assert largest_difference(corrected, expected_gradients) < TOLERANCE
